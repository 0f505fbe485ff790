"""Files of the libraries that published the encoders: their names, and what their networks compute.

Each file in `golden/` holds the tensors of a tiny network as the library that it names stores them,
an image, and what that library computes of it.
"""

import json
import pathlib
import re

import numpy as np
import pytest
from flax import nnx
from tiny import run_model, some_slow

from evovit_jax.errors import UserError
from evovit_jax.models.encoder import Encoder, EncoderConfig
from evovit_jax.models.variables import variables
from evovit_jax.models.vit import VisionTransformer, ViTConfig
from evovit_jax.weights import files, from_torch, load_weights, to_torch
from evovit_jax.weights.families import find_family

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
MODELS = {"Encoder": (Encoder, EncoderConfig), "VisionTransformer": (VisionTransformer, ViTConfig)}
QUICK = ("transformers_dinov2_reg",)
# What of a file is not written again: other towers, another prefix.
TEXT = {
    "transformers_siglip": ("text_model.", "logit_"),
    "transformers_clip": ("text_model.", "text_projection.", "logit_scale"),
    "openai_clip": (
        *("positional_embedding", "text_projection", "logit_scale", "transformer."),
        *("token_embedding.", "ln_final."),
    ),
    "open_clip_siglip": ("text.", "logit_"),
    "big_vision_siglip": ("params/txt/", "params/t", "params/b"),
}
PREFIX = {"transformers_clip_vision": "vision_model.", "openai_perception_encoder": "visual."}
# Written as zeros, or with a share of the class token.
OTHER_VALUES = r"mask_token|cls_token|pos_embed|position_embeddings|qkv\.bias"


def read(name):
    """(library's tensors, all arrays, our settings) of a file."""
    found = np.load(GOLDEN / f"{name}.npz")
    tensors = {key[7:]: found[key] for key in found.files if key.startswith("tensor/")}
    return tensors, found, json.loads(str(found["meta"]))


def make(meta, **others):
    """A file's network, whose variables have shapes and no values yet."""
    return nnx.eval_shape(lambda: made(meta, **others))


def made(meta, **others):
    model, config = MODELS[meta["model"]]
    return model(config(**meta["settings"] | others), "none", rngs=nnx.Rngs(0))


def as_written(name, tensors):
    """A file's tensors of the image tower, under the names that are written."""
    own = {k: v for k, v in tensors.items() if not k.startswith(TEXT.get(name, "nothing"))}
    own = {PREFIX.get(name, "") + k: v for k, v in own.items()}
    if name == "facebook_dinov2_giant_chunks":
        own = {k.replace("blocks.0.0.", "blocks.0."): v for k, v in own.items()}
    return {k: v for k, v in own.items() if "/encoderblock/" not in k} | {
        k.replace("/encoderblock/", f"/encoderblock_{i}/"): one
        for k, v in own.items()
        if "/encoderblock/" in k
        for i, one in enumerate(v)
    }


@pytest.mark.parametrize("name", NAMES)
def test_names_are_the_librarys_and_values_come_back(name):
    tensors, _, meta = read(name)
    model = make(meta)
    family = find_family(model, None, tensors).name
    assert name.startswith(family)
    notes = from_torch(model, tensors)
    dropped = [k for k in tensors if k.startswith(TEXT.get(name, "nothing"))]
    assert bool(dropped) <= any(note.startswith("without use in this model: ") for note in notes)
    again = to_torch(model, family)
    expected = as_written(name, tensors)
    assert sorted(again) == sorted(expected)
    for key, value in expected.items():
        assert again[key].shape == value.shape, key
        if not re.search(OTHER_VALUES, key):
            np.testing.assert_array_equal(again[key], value, err_msg=key)
    other = make(meta)
    from_torch(other, again)
    for path, variable in variables(model).items():
        np.testing.assert_array_equal(variable[...], variables(other)[path][...], err_msg=path)


@pytest.mark.parametrize("name", some_slow(NAMES, QUICK))
def test_the_network_computes_what_the_library_computes(name):
    tensors, found, meta = read(name)
    model = make(meta)
    from_torch(model, tensors)
    logits, out = run_model(model, found["images"])
    ours = {"logits": logits, "features": out.features, "pooled": out.pooled}
    outputs = [key for key in found.files if key.startswith("out/")]
    assert outputs
    for key in outputs:
        np.testing.assert_allclose(ours[key[4:]], found[key], atol=1e-4, err_msg=key)


def load_from(tmp_path, meta, tensors, **others):
    files.write_tensors(str(tmp_path / "x.safetensors"), tensors)
    model = make(meta, **others)
    return model, load_weights(model, tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["openai_clip", "transformers_siglip", "facebook_dinov2_reg"])
def test_positions_of_another_grid_are_interpolated(tmp_path, name):
    tensors, _, meta = read(name)
    key = next(k for k in tensors if "posi" in k or "pos_emb" in k if "text" not in k)
    key = "visual.positional_embedding" if name == "openai_clip" else key
    key = "vision_model.embeddings.position_embedding.weight" if "siglip" in name else key
    tensors[key] = np.full_like(tensors[key], 0.25)
    model, notes = load_from(tmp_path, meta, tensors, image_size=32)
    assert any("interpolated from" in note for note in notes)
    np.testing.assert_allclose(model.pos_embed[...], 0.25, rtol=1e-5)


def test_a_head_that_is_not_used_is_dropped_and_one_that_is_missing_named():
    tensors, _, meta = read("openai_clip")
    headless = make(meta, num_classes=0)
    assert any("visual.proj" in note for note in from_torch(headless, tensors))
    del tensors["visual.proj"]
    with pytest.raises(UserError, match=r"lacks head/.*; .*--num_classes=0"):
        from_torch(make(meta), tensors)
    tensors, _, meta = read("transformers_clip")
    from_torch(make(meta, num_classes=0), tensors)
    tensors, _, meta = read("transformers_siglip")
    pooled = {"pool": "avg", "fc_norm": False}  # the models whose names have `gap`
    from_torch(make(meta, **pooled), tensors)
    tensors, _, meta = read("big_vision_siglip")
    from_torch(make(meta, **pooled), tensors)


def test_other_leftovers_are_errors():
    for name in ("transformers_clip", "openai_clip", "big_vision_siglip", "facebook_dinov3"):
        tensors, _, meta = read(name)
        with pytest.raises(UserError, match="the model has no place for its "):
            from_torch(make(meta), tensors | {"params/img/extra": np.zeros(3)})


@pytest.mark.parametrize("name", ["transformers_dinov3", "facebook_dinov3"])
def test_biases_that_the_model_has_not_must_be_zero(name):
    tensors, _, meta = read(name)
    plain = {"qkv_bias": False, "key_bias": True}
    with pytest.raises(UserError, match=r"is not zero, and the model has none: .*_qkvb"):
        from_torch(make(meta, **plain), tensors)
    zero = {
        k: np.zeros_like(v) if k.endswith(("qkv.bias", "q_proj.bias", "v_proj.bias")) else v
        for k, v in tensors.items()
    }
    model = make(meta, **plain)
    from_torch(model, zero)
    assert sorted(to_torch(model, find_family(model, None, tensors).name)) == sorted(tensors)


def test_what_a_library_cannot_hold_is_refused():
    clip = made(read("openai_clip")[2])
    clip.head.bias[...] = np.ones(clip.head.bias.shape, np.float32)
    for family in ("openai", "transformers"):
        with pytest.raises(UserError, match=r"have no place for a bias beside .*, and it is not 0"):
            to_torch(clip, family)
    dinov2 = made(read("transformers_dinov2")[2], num_classes=3)
    with pytest.raises(UserError, match="transformers has no such head on this network"):
        to_torch(dinov2, "transformers")
    registers = make(read("facebook_dinov2_reg")[2])
    with pytest.raises(UserError, match="CLIP's names are not for a network with registers"):
        to_torch(registers, "openai")
    with pytest.raises(UserError, match="big_vision's SigLIP files have no place for blocks"):
        to_torch(registers, "big_vision")
    with pytest.raises(UserError, match="transformers has no network of that kind"):
        to_torch(make(read("openai_perception_encoder")[2]), "transformers")


def test_names_in_memory_of_newer_transformers_are_read():
    tensors, _, meta = read("transformers_vit")
    newer = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "0.output.dense": "0.mlp.fc2",
    }

    def renamed(name):
        for old, new in newer.items():
            name = name.replace(old, new)
        return name

    model, other = make(meta), make(meta)
    from_torch(model, tensors)
    from_torch(other, {renamed(k): v for k, v in tensors.items()})
    for path, variable in variables(model).items():
        np.testing.assert_array_equal(variable[...], variables(other)[path][...], err_msg=path)
