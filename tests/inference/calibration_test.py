"""A calibration from images to a file that says what it is for, which others then load."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import run_model

from evovit_jax import flops
from evovit_jax.errors import UserError
from evovit_jax.inference.calibration import calibrate, specification
from evovit_jax.inference.ready_model import prepare
from evovit_jax.models import abstract_model
from evovit_jax.weights import save_weights

NAME = "deit_tiny_patch16_224"
SMALL = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3}


def test_a_specification_has_what_was_given():
    reducer = abstract_model(NAME, "diffrate,prune_kept=9:8:7,merge_kept=9:8:6", **SMALL).reducer
    assert specification("diffrate", reducer) == "diffrate,prune_kept=9:8:7,merge_kept=9:8:6"
    assert specification("tome", abstract_model(NAME, "tome", **SMALL).reducer) == "tome"


def test_what_cannot_be_calibrated_is_refused_before_images_are_read():
    prepared = prepare(NAME, num_classes=2, **SMALL)
    for output, images, message in (
        ("x.pth", 8, "must end in .safetensors"),
        ("x.safetensors", 0, "--images=0 must be at least 1"),
        ("x.safetensors", 8, "reduction 'none' has nothing to calibrate"),
    ):
        with pytest.raises(UserError, match=message):
            calibrate(prepared, "folder:none", output, images=images)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("class 0", "class 1"):
        (tmp_path / name).mkdir()
        for i in range(9):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "prune_and_merge,keep_rate=0.5",
        "patch_slimming,tolerance=0.05,step=4",
        "diffrate,gmacs=TARGET",
    ],
)
def test_others_load_what_was_found(spec, folder, tmp_path):
    made = {"num_classes": 2, "seed": 3, **SMALL}
    dense = prepare(NAME, **made)
    weights, output = str(tmp_path / "dense.safetensors"), str(tmp_path / "out.safetensors")
    save_weights(dense.model, weights)
    target = 0.8 * flops.gmacs(dense.model)
    spec = spec.replace("TARGET", f"{target:.6g}")
    prepared = prepare(NAME, weights, spec, allow_missing="reducer/.*", **made)
    figures = calibrate(prepared, f"folder:{folder}", output, images=16, batch_size=8)
    assert figures["examples"] == 16
    again = prepare(NAME, output, num_classes=2, **SMALL)
    assert again.reduction == figures["reduction"]
    assert dataclasses.asdict(again.model.reducer.fields) == dataclasses.asdict(
        prepared.model.reducer.fields
    )
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    np.testing.assert_allclose(
        run_model(again.model, images)[0], run_model(prepared.model, images)[0], atol=1e-6
    )
    assert figures["gmacs"] <= flops.gmacs(dense.model)
    other = prepare(NAME, output, "none", allow_missing=True, num_classes=2, **SMALL)
    np.testing.assert_allclose(
        run_model(other.model, images)[0], run_model(dense.model, images)[0], atol=1e-6
    )
