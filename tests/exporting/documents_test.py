"""The code of docs/export.md loads what was exported, without this library."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from evovit_jax.exporting import checked, formats, pictures
from tests.exporting.checked_test import ready

TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "export.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
# An import of the package, or of the networks' own library, fails.
BLOCKED = "import sys\nsys.modules['evovit_jax'] = sys.modules['flax'] = None\n"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("stablehlo", marks=pytest.mark.slow),
        pytest.param("onnx", marks=pytest.mark.onnx),
    ],
)
def test_the_lines_of_the_document_name_the_networks_class(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "COUNT", 4)
    prepared = ready("evit,keep_rate=0.5,locations=1")
    place = tmp_path / f"network.{kind}"
    about = checked.export(prepared, formats.find(kind), place)
    assert about["check"]["batch_sizes"] == [1, 3]
    photo = np.random.default_rng(3).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=100)
    seen = np.asarray(Image.open(tmp_path / "photo.jpg"))[None]
    wanted = about["class_names"][int(np.asarray(prepared.look(seen)[0]).argmax())]
    (code,) = (code for code in CODE if f"network.{kind}" in code)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code.replace("DIR/", f"{tmp_path}/")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == wanted


def test_the_document_has_both_pieces_of_code():
    assert [len(code.splitlines()) <= 15 for code in CODE] == [True, True]
