"""The predict command on images that the test draws."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import run_model

from evovit_jax import predict
from evovit_jax.errors import UserError
from evovit_jax.prepared import prepare

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
    found = predict.predict(prepared, images, [f"name {i}" for i in range(7)])
    assert [item["image"] for item in found] == images
    for item, file in zip(found, images, strict=True):
        pixels = predict.read(prepared, file)[None]
        logits = np.asarray(run_model(prepared.model, prepared.normalise(pixels))[0][0])
        order = np.argsort(-logits)[:5]
        assert [one["index"] for one in item["classes"]] == order.tolist()
        assert [one["name"] for one in item["classes"]] == [f"name {i}" for i in order]
        expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        probabilities = [one["probability"] for one in item["classes"]]
        np.testing.assert_allclose(probabilities, expected[order], atol=1e-5)


def test_imagenet_has_a_thousand_different_names():
    names = predict.class_names(1000)
    assert len(set(names)) == 1000
    places = {0: "tench", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {i: names[i] for i in places} == places
    assert names[134] != names[517]  # two kinds of crane


def test_names_of_other_classes(tmp_path):
    assert predict.class_names(2) == ["class 0", "class 1"]
    file = tmp_path / "names.txt"
    file.write_text("cat\ndog\n")
    assert predict.class_names(2, file=str(file)) == ["cat", "dog"]
    with pytest.raises(UserError, match="2 lines for 3 classes"):
        predict.class_names(3, file=str(file))
    with pytest.raises(UserError, match="cannot read class names"):
        predict.class_names(3, file=str(tmp_path / "none.txt"))


def test_the_command_ends_with_json(images, capsys, monkeypatch):
    small = prepare("deit_tiny_patch16_224", num_classes=7, **SMALL)
    monkeypatch.setattr(predict.prepared_lib, "prepare_from", lambda flags: small)
    assert predict.main(["--model=deit_tiny_patch16_224", images[0], "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == images[0]
    found = json.loads(lines[-1])
    assert sorted(found) == ["model", "predictions", "reduction"]
    assert len(found["predictions"][0]["classes"]) == 5


def test_what_is_no_image_is_named(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"no image")
    prepared = prepare("deit_tiny_patch16_224", num_classes=7, **SMALL)
    with pytest.raises(UserError, match=r"cannot read image .*a\.jpg"):
        predict.read(prepared, str(file))
    with pytest.raises(UserError, match=r"cannot read image .*none\.jpg"):
        predict.read(prepared, str(tmp_path / "none.jpg"))
