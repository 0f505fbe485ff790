"""Rounding parameters ahead of the calls changes no bit of what any family of networks computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import filled, run_model, some_slow

from evovit_jax.models import model_entry
from evovit_jax.models.narrowing import narrow

NETWORKS = {
    "evo_deit_tiny_patch16_224": "evo,first_block=1",
    "deit_tiny_patch16_224": "dynamicvit",
    "levit_128s": "none",
    "evo_levit_128s": "evo",
    "lvvit_s": "none",
    "regnety_160": "none",
    "pit_ti_224": "none",
    "pvt_v2_b0": "none",
    "cvt_13": "none",
    "convit_tiny": "none",
    "volo_d1_224": "none",
    "crossvit_tiny_240": "none",
    "convnext_tiny": "dynamicvit",
    "swin_tiny_patch4_window7_224": "dynamicvit",
    "lookupvit_base_patch16_224": "none",
    "vit_base_patch14_reg4_dinov2.lvd142m": "none",
    "vit_base_patch16_dinov3.lvd1689m": "none",
    "vit_pe_core_base_patch16_224.fb": "none",
    "vit_base_patch16_siglip_224.webli": "none",
}


@pytest.mark.parametrize("name", some_slow(NETWORKS, {"evo_deit_tiny_patch16_224"}))
def test_no_bit_changes(name):
    fields = model_entry(name).model.smoke
    model = filled(name, NETWORKS[name], dtype="bfloat16", **fields)
    side, channels = model.config.image_size, model.config.in_channels
    images = jax.random.normal(jax.random.key(0), (2, side, side, channels))
    narrower = nnx.clone(model)
    assert narrow(narrower)
    assert not narrow(narrower)  # once
    outputs = [run_model(each, images)[0] for each in (model, narrower)]
    assert np.isfinite(outputs[0]).all()
    assert outputs[0].dtype == jnp.float32
    np.testing.assert_array_equal(*outputs)


def test_float32_networks_stay_as_they_are():
    model = filled("deit_tiny_patch16_224", **model_entry("deit_tiny_patch16_224").model.smoke)
    assert not narrow(model)
