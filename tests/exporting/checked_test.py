"""What is exported computes what the network computes, or is not there."""

import importlib.util
import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import filled

from evovit_jax.errors import UserError
from evovit_jax.exporting import checked, formats, pictures
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models import EvalTransform

SMALL = {"image_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3}
TRANSFORM = EvalTransform(32, 40, "bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def ready(reduction: str, name: str = "deit_tiny_patch16_224", **fields) -> ReadyModel:
    model = filled(name, reduction, **{**SMALL, "num_classes": 5, **fields})
    return ReadyModel(name, reduction, model, TRANSFORM, weights="DIR/weights.safetensors")


@pytest.fixture(scope="module")
def evit():
    """One network for all tests, so that it is compiled once."""
    return ready("evit,keep_rate=0.5,locations=1")


@pytest.fixture(autouse=True)
def _few_images(monkeypatch):
    monkeypatch.setattr(pictures, "COUNT", 2)


def copying(prepared, *, off: float = 0.0) -> formats.Format:
    """A format that writes nothing of use, and whose runtime is off by a number."""

    def write(logits, images, path):
        path.write_bytes(b"content")
        return {"opset": 1}

    def read(path):
        assert path.read_bytes() == b"content"
        return lambda images: np.asarray(prepared.look(images)[0]) + np.float32(off)

    return formats.Format("copy", write, read, ("jax",))


def test_stablehlo_runs_at_any_batch_and_takes_pixels_or_normalised_images(evit, tmp_path):
    place = tmp_path / "network.stablehlo"
    about = checked.export(evit, formats.find("stablehlo"), place, dtype="uint8")
    program = jax.export.deserialize(bytearray(place.read_bytes()))
    assert (about["platforms"], program.platforms) == (
        ["cpu", "cuda", "tpu"],
        ("cpu", "cuda", "tpu"),
    )
    assert str(program.in_avals[0]) == "uint8[batch,32,32,3]"
    assert str(program.out_avals[0]) == "float32[batch,5]"
    assert about["check"]["batch_sizes"] == [1]
    assert about["check"]["largest_difference"] < 1e-5


def test_the_manifest_says_what_a_user_needs(evit, tmp_path):
    place = tmp_path / "network"
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    about = checked.export(
        evit, copying(evit), place, dtype="uint8", class_names=str(names), tolerance=1e-3
    )
    assert json.loads((tmp_path / "network.json").read_text()) == about
    assert about["input"] == {"name": "images", "shape": ["batch", 32, 32, 3], "dtype": "uint8"}
    assert about["output"] == {"name": "logits", "shape": ["batch", 5], "dtype": "float32"}
    assert about["transform"] == {
        "resize_shorter_side": 40,
        "interpolation": "bilinear",
        "centre_crop": 32,
        "divide_by": 255,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "inside": ["divide_by", "mean", "std"],
    }
    assert about["class_names"] == list("abcde")
    assert (about["model"], about["reduction"]) == (evit.name, evit.reduction)
    assert about["weights"] == "weights.safetensors"
    assert len(about["weights_sha256"]) == 64
    # sha256 of b"content"
    assert about["sha256"] == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert (about["bytes"], about["opset"], about["file"]) == (7, 1, "network")
    assert about["versions"]["jax"] == jax.__version__
    assert about["check"] == {
        "images": 2,
        "of": "parts of the two photographs of scikit-learn",
        "batch_sizes": [1],
        "largest_difference": 0.0,
        "undecided": [],
        "tolerance": 1e-3,
    }


@pytest.mark.parametrize("off", [1e-3, float("nan")])
def test_nothing_is_written_where_the_logits_differ(off, evit, tmp_path):
    with pytest.raises(UserError, match=r"image 1 of 2 differ by .*more than --tolerance=0\.0001"):
        checked.export(evit, copying(evit, off=off), tmp_path / "network", dtype="uint8")
    assert not list(tmp_path.iterdir())


def test_ties_are_named_and_only_a_few_are_allowed(evit, tmp_path, monkeypatch):
    asked = []

    def tied(prepared, image, tolerance):
        asked.append(image.shape)
        return True

    monkeypatch.setattr(checked, "is_undecided", tied)
    pixels = np.zeros((20, 32, 32, 3), np.uint8)

    def run_wrong_on(wrong):
        numbers = iter(range(20))

        def run(images):
            found = np.array(evit.look(images)[0])
            return found + np.float32([[next(numbers) in wrong] for _ in images])

        return run

    monkeypatch.setattr(checked, "BATCH", 2)
    found = checked.compared(evit, run_wrong_on({0, 7}), pixels, "uint8", 1e-4)
    assert found == {"largest_difference": 0.0, "undecided": [0, 7]}
    assert asked == [(32, 32, 3)] * 2
    with pytest.raises(UserError, match="3 of 20 images have scores so close"):
        checked.compared(evit, run_wrong_on({0, 7, 8}), pixels, "uint8", 1e-4)


@pytest.mark.parametrize(("distance", "undecided"), [(0.0, True), (0.1, False)])
def test_an_image_is_undecided_where_rounding_its_input_moves_its_logits(distance, undecided):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    prepared = ready("none")

    def look(threshold, images):
        return (images.mean(axis=(1, 2, 3)) > threshold).astype(jnp.float32)[:, None], ()

    threshold = checked.normalized(prepared, image[None]).mean(dtype=np.float64) - distance
    prepared.__dict__["program"] = look, jnp.float32(threshold)
    assert checked.is_undecided(prepared, image, 1e-4) == undecided


def test_an_earlier_export_stays_where_a_new_one_fails(evit, tmp_path):
    place = tmp_path / "network"
    checked.export(evit, copying(evit), place, dtype="uint8")
    before = (tmp_path / "network.json").read_text()
    with pytest.raises(UserError, match="differ"):
        checked.export(evit, copying(evit, off=1.0), place, dtype="uint8")
    assert (tmp_path / "network.json").read_text() == before
    assert place.read_bytes() == b"content"


def test_the_images_are_those_that_are_named(evit, tmp_path):
    for i in range(4):
        Image.new("RGB", (50, 40), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    found, said = pictures.of_data(evit, f"folder:{tmp_path}")
    assert said == f"the first of {tmp_path.name}"
    assert found.shape == (2, 32, 32, 3)
    assert found[:, 0, 0, 0].tolist() == [0, 60]


def test_without_data_the_images_are_parts_of_photographs_and_always_the_same(evit):
    found, said = pictures.of_two_photographs(evit)
    again, _ = pictures.of_two_photographs(evit)
    assert "scikit-learn" in said
    np.testing.assert_array_equal(found, again)
    assert len({image.tobytes() for image in found}) == 2
    assert found.std(axis=(1, 2)).min() > 5  # no plain colour


def test_weights_that_no_file_holds_are_refused(evit, tmp_path, monkeypatch):
    monkeypatch.setattr(checked, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="a file holds 2 GiB"):
        checked.export(evit, copying(evit), tmp_path / "network")


@pytest.mark.parametrize(
    ("name", "needs"),
    [("onnx", r"onnx and onnxruntime: .*\[onnx\]"), ("saved_model", r"tensorflow: .*\[tf\]")],
)
def test_a_library_that_is_not_there_is_named(name, needs, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda library: None)
    with pytest.raises(UserError, match=f"--format={name} needs {needs}"):
        formats.find(name)
