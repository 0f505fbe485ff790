"""The predict command on images that the test draws."""

import json
import os

import numpy as np
import pytest
from hostile_files import irregular
from PIL import Image
from tiny import run_model

from evovit_jax import predict
from evovit_jax.errors import UserError
from evovit_jax.inference import class_names, prediction
from evovit_jax.inference.ready_model import prepare

SMALL = {"image_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 3}


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for i, mode in enumerate(("RGB", "L", "RGB")):
        shape = (40, 50, 3) if mode == "RGB" else (40, 50)
        file = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(file)
        files.append(str(file))
    return files


def test_the_five_most_probable_classes_in_order(images):
    prepared = prepare("deit_tiny_patch16_224", num_classes=7, **SMALL)
    found = prediction.predict(prepared, images, [f"name {i}" for i in range(7)])
    assert [item["image"] for item in found] == images
    for item, file in zip(found, images, strict=True):
        pixels = prediction.read(prepared, file)[None]
        t = prepared.transform
        images = (pixels.astype(np.float32) / 255 - np.float32(t.mean)) / np.float32(t.std)
        logits = np.asarray(run_model(prepared.model, images)[0][0])
        order = np.argsort(-logits)[:5]
        assert [one["index"] for one in item["classes"]] == order.tolist()
        assert [one["name"] for one in item["classes"]] == [f"name {i}" for i in order]
        expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        probabilities = [one["probability"] for one in item["classes"]]
        np.testing.assert_allclose(probabilities, expected[order], atol=1e-5)


def test_the_command_ends_with_json(images, capsys, monkeypatch):
    small = prepare("deit_tiny_patch16_224", num_classes=7, **SMALL)
    monkeypatch.setattr(predict.model_flags, "prepare_from", lambda flags: small)
    assert predict.main(["--model=deit_tiny_patch16_224", images[0], "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == images[0]
    found = json.loads(lines[-1])
    assert sorted(found) == ["model", "predictions", "reduction"]
    assert len(found["predictions"][0]["classes"]) == 5


def test_an_image_may_be_under_the_home_directory(images, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    prepared = prepare("deit_tiny_patch16_224", num_classes=7, **SMALL)
    expected = prediction.read(prepared, images[0])
    np.testing.assert_array_equal(prediction.read(prepared, "~/0.png"), expected)


def test_what_is_no_image_is_named(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"no image")
    prepared = prepare("deit_tiny_patch16_224", num_classes=7, **SMALL)
    with pytest.raises(UserError, match=r"cannot read image .*a\.jpg"):
        prediction.read(prepared, str(file))
    with pytest.raises(UserError, match=r"cannot read image .*none\.jpg"):
        prediction.read(prepared, str(tmp_path / "none.jpg"))


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder"])
def test_what_is_no_regular_file_is_refused(kind, tmp_path):
    small = prepare("deit_tiny_patch16_224", num_classes=7, **SMALL)
    with pytest.raises(UserError, match=r"cannot read image .*no regular file"):
        prediction.read(small, irregular(tmp_path, kind))
    with pytest.raises(UserError, match=r"cannot read class names .*no regular file"):
        class_names.class_names(7, file=str(tmp_path / f"{kind}.jpg"))


def test_names_of_any_kind_are_printed(images, tmp_path, capsys, monkeypatch):
    small = prepare("deit_tiny_patch16_224", num_classes=7, max_image_pixels=3000, **SMALL)
    monkeypatch.setattr(predict.model_flags, "prepare_from", lambda flags: small)
    name = str(tmp_path / "a\nb\x1b[31m\udcff.png")
    os.rename(images[0], name)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"\x1b[3{i}m" for i in range(7)))
    assert predict.main(["--model=x", name, f"--class_names={names}", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / r"a\nb\x1b[31m\udcff.png")
    assert all(line.isprintable() for line in lines)
    assert json.loads(lines[-1])["predictions"][0]["image"] == name


def test_the_flag_bounds_the_pixels(images):
    small = ["--model=deit_tiny_patch16_224", *(f"--{k}={v}" for k, v in SMALL.items())][:2]
    with pytest.raises(UserError, match="50 x 40 pixels, more than max_image_pixels=1999"):
        predict.main([*small, "--max_image_pixels=1999", images[0]])
    with pytest.raises(UserError, match="--max_image_pixels=0 must be at least 1"):
        predict.main([*small, "--max_image_pixels=0", images[0]])
