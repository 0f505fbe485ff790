"""The evaluate command: its last line, its refusals, and the real images where they are."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from evovit_jax import evaluate
from evovit_jax.errors import UserError
from evovit_jax.inference.ready_model import prepare

SMALL = {"image_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 3}


def test_the_command_ends_with_json(tmp_path, capsys, monkeypatch):
    for name in ("class 0", "class 1"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((40, 40, 3), len(name), np.uint8)).save(tmp_path / name / "x.png")
    small = prepare("deit_tiny_patch16_224", num_classes=2, **SMALL)
    monkeypatch.setattr(evaluate.model_flags, "prepare_from", lambda flags: small)
    assert evaluate.main([f"--data=folder:{tmp_path}", "--json"]) == 0
    line, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["examples"] == 2
    assert line.startswith(f"deit_tiny_patch16_224 (none): top-1 {found['top1']:.2f}%, top-5 ")


def test_a_bad_batch_ends_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(evaluate.model_flags, "prepare_from", None)
    flags = ["--model=deit_tiny_patch16_224", "--data=folder:x", "--batch_size=-8"]
    with pytest.raises(UserError, match="batch_size=-8 must be at least 1"):
        evaluate.main(flags)


@pytest.mark.slow
def test_deit_tiny_gets_what_pytorch_gets(data_dir, tmp_path):
    weights = data_dir / "deit_tiny_patch16_224.safetensors"
    images = data_dir / "imagenet_compatible_500.zip"
    if not weights.is_file() or not images.is_file():
        pytest.skip(f"{data_dir} has not these images and weights")
    with zipfile.ZipFile(images) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-m", "evovit_jax.evaluate", "--model=deit_tiny_patch16_224"]
    command += [f"--weights={weights}", f"--data=folder:{tmp_path}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["examples"] == 500
    assert found["top1"] == pytest.approx(85.4, abs=0.6)
    assert found["top5"] == pytest.approx(96.4, abs=0.6)
