"""The notebooks run from top to bottom, in smoke form, and hold no outputs."""

import os
import pathlib
import sys

import nbformat
import pytest
from nbclient import NotebookClient

COLAB = pathlib.Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))


def test_there_are_notebooks():
    names = [path.name for path in NOTEBOOKS]
    assert names == ["accelerate_an_encoder.ipynb", "quickstart.ipynb", "train_on_tpu.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the notebook's machinery, not of this package
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.setenv("EVOVIT_VARIANT", ":smoke")
    monkeypatch.setenv("EVOVIT_WORKDIR", str(tmp_path / "work"))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4" if path.stem == "train_on_tpu" else "1")
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    # A copy of the checkout's layout, so that runs/ of the notebook is not the user's.
    root = tmp_path / "checkout"
    (root / "colab").mkdir(parents=True)
    (root / "configs").symlink_to(COLAB.parent / "configs")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(root / "colab")}}
    )
    client.execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    if path.stem == "accelerate_an_encoder":
        assert "tokens in each block: 12 8 8" in printed
        assert printed.count("cosine similarity") == 2
        assert len(pictures) == 2
        return
    assert '"val_top1"' in printed
    if path.stem == "train_on_tpu":
        assert "restored step 2" in printed
        assert printed.count("CpuDevice") == 4
    else:
        assert len(pictures) == 6
