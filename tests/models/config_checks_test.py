"""Fields that no network can be made with, in every family."""

import jax.numpy as jnp
import numpy as np
import pytest

import evovit_jax
from evovit_jax.errors import UserError

BAD = [
    ({"dtype": "bf16"}, r"dtype must be one of .*'bfloat16'.*, got 'bf16'"),
    ({"num_classes": -1}, "num_classes must be a whole number from 0, got -1"),
    ({"image_size": 0}, "image_size must be a whole number from 1, got 0"),
]
TOKENS = [
    ({"attention_kernel": "foo"}, "attention_kernel must be one of .*, got 'foo'"),
    ({"remat": "some"}, "remat must be one of"),
    ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), got 1.0"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "levit_128s",
        "regnety_160",
        "pvt_v2_b0",
        "pit_ti_224",
        "cvt_13",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_every_family(name, fields, message):
    with pytest.raises(UserError, match=message):
        evovit_jax.create_model(name, **fields)


@pytest.mark.parametrize(("fields", "message"), TOKENS)
@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "levit_128s",
        "pvt_v2_b0",
        "pit_ti_224",
        "cvt_13",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_networks_of_tokens(name, fields, message):
    with pytest.raises(UserError, match=message):
        evovit_jax.create_model(name, **fields)


def test_numpys_numbers_are_numbers_and_no_classes_are_allowed():
    model = evovit_jax.create_model(
        "deit_tiny_patch16_224", depth=np.int64(1), image_size=np.int32(32), num_classes=0
    )
    assert model(jnp.zeros((1, 32, 32, 3)))[0].shape == (1, 192)


@pytest.mark.parametrize("name", ["num_heads", "patch_size", "depth", "embed_dim"])
def test_nothing_of_nothing(name):
    with pytest.raises(UserError, match=f"{name} must be a whole number from 1, got 0"):
        evovit_jax.create_model("deit_tiny_patch16_224", **{name: 0})
    if name != "patch_size":
        with pytest.raises(UserError, match=rf"{name} must be a whole number from 1, got \(1, 0"):
            evovit_jax.create_model("levit_128s", **{name: (1, 0, 1)})
