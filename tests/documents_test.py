"""The commands of the README and of the pages for users run, on small stand-ins for their files."""

import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import evovit_jax
from evovit_jax.weights import to_torch

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
HOW_TO = sorted((ROOT / "docs" / "howto").glob("*.md"))


def commands(text):
    """The commands of a document, each on a line of its own or after an installation."""
    found = re.findall(r"^ *(?:pip install .* && )?(python -m evovit_jax\.[a-z]+ .*)$", text, re.M)
    return [command.strip() for command in found]


def code(text):
    """The blocks of Python of a document."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "use.md", *HOW_TO]
# Each once, in the order of the pages.
COMMANDS = list(dict.fromkeys(line for page in PAGES for line in commands(page.read_text())))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the documents call DIR: weights, photographs by class, one photograph."""
    folder = tmp_path_factory.mktemp("documents")
    model = evovit_jax.create_model("deit_tiny_patch16_224")
    tensors = {name: np.ascontiguousarray(value) for name, value in to_torch(model).items()}
    save_file(tensors, folder / "deit_tiny_patch16_224.safetensors")
    random = np.random.default_rng(0)
    names = [
        f"{part}/{kind}/{i}.jpg"
        for part in ("photos", "train", "val")
        for kind in ("goldfish", "tench")
        for i in range(8 if part == "train" else 2)
    ]
    for name in [*names, "photo.jpg"]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (64, 80, 3), np.uint8)).save(path)
    return folder


def test_the_readme_opens_with_two_commands():
    first, second = re.findall(r"^    (pip install .*)$", TEXT, flags=re.MULTILINE)[:2]
    recipe = "python -m evovit_jax.main --config=configs/digits_evo.py --workdir=runs/digits"
    assert first == f"pip install -e . && {recipe}"
    assert second == "pip install -e '.[test]' && pytest"
    assert len(commands(TEXT)) > 5


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_question_is_answered_by_what_runs(page):
    text = page.read_text()
    assert re.match(r"# .*(\?|NaN)\n", text)
    assert commands(text) or code(text)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in HOW_TO if code(p.read_text())], ids=lambda p: p.stem)
def test_code_runs(page):
    found = {}
    exec("\n".join(code(page.read_text())), found)
    shapes = {name: value.shape for name, value in found.items() if hasattr(value, "shape")}
    assert shapes == {"features": (1, 14, 14, 192), "classes": (1, 14, 14, 21)}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[2])
def test_runs(command, folder, tmp_path):
    words = shlex.split(command.replace("DIR/", f"{folder}/"))
    assert words[:2] == ["python", "-m"]
    # Training in two steps, nothing written into the checkout.
    words = [re.sub(r"^(--config=[^:]+)$", r"\1:smoke", word) for word in words]
    words = [re.sub(r"^--workdir=.*", f"--workdir={tmp_path}", word) for word in words]
    if words[2] == "evovit_jax.main" and any("folder:" in word for word in words):
        words += ["--config.batch_size=8", "--config.augment.mix_group=8"]
    if words[2] == "evovit_jax.calibrate":
        words += ["--batch_size=4"]
    if words[2] == "evovit_jax.compare":
        words += ["--rounds=1"]
    if words[2] == "evovit_jax.benchmark":
        words += ["--rounds=1", "--seconds=0.01"]
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    if "--format=onnx" in words and not importlib.util.find_spec("onnxruntime"):
        assert (done.returncode, "[onnx]" in done.stderr) == (2, True), done.stderr[-2000:]
        return
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
