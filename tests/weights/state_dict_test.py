"""Round trips of every family, and what is said or refused when tensors do not fit."""

import json
import pathlib

import numpy as np
import pytest
from tiny import filled
from tiny_sizes import (
    CONVIT,
    CONVNEXT,
    CROSSVIT,
    CVT,
    LEVIT,
    LOOKUP,
    LVVIT,
    PIT,
    PVT,
    REGNET,
    SWIN,
    VIT,
    VOLO,
)

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import fuse
from evovit_jax.models.variables import variables
from evovit_jax.weights import from_torch, to_torch

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
# Model, its reduction, sizes, family, and a tensor that only this family names so.
FAMILIES = [
    ("deit_tiny_patch16_224", None, VIT, "timm", "blocks.1.attn.qkv.weight"),
    ("deit_tiny_distilled_patch16_224", None, VIT, "timm", "head_dist.weight"),
    ("deit3_small_patch16_224", None, VIT, "timm", "blocks.1.ls2.gamma"),
    ("deit3_small_patch16_224", None, VIT, "deit3", "blocks.1.gamma_2"),
    ("vit_tiny_patch16_224", None, VIT, "google", "Transformer/encoderblock_1/LayerNorm_2/scale"),
    ("evo_deit_tiny_patch16_224", None, VIT, "evo_deit", "vs.1.v.bias"),
    (
        "deit_tiny_patch16_224",
        "dynamicvit,locations=1:",
        VIT,
        "timm",
        "score_predictor.0.out_conv.4.bias",
    ),
    ("deit_tiny_patch16_224", "sit,locations=1:", VIT, "timm", "cluster_layers.0.scale"),
    ("levit_128s", None, LEVIT, "levit", "blocks.6.attention_bias_idxs"),
    ("levit_128s", None, LEVIT, "timm", "stages.1.downsample.attn_downsample.q.ln.linear.weight"),
    ("evo_levit_128s", None, LEVIT, "levit", "stage_blocks.4.m.0.m.learn_tradeoff"),
    ("vit_small_patch14_reg4_dinov2", None, VIT, "timm", "reg_token"),
    ("vit_giant_patch14_dinov2", None, VIT, "timm", "blocks.1.mlp.fc1.weight"),
    ("vit_small_patch16_dinov3_qkvb", None, VIT, "timm", "blocks.1.attn.q_bias"),
    ("vit_small_plus_patch16_dinov3", None, VIT, "timm", "blocks.1.gamma_2"),
    ("vit_base_patch16_siglip_224", None, VIT, "timm", "attn_pool.latent"),
    ("vit_base_patch16_clip_quickgelu_224", None, VIT, "timm", "norm_pre.weight"),
    ("vit_pe_core_base_patch16_224", None, {**VIT, "map_heads": 3}, "timm", "attn_pool.kv.bias"),
    ("lvvit_s", None, LVVIT, "lvvit", "patch_embed.bn3.num_batches_tracked"),
    ("pvt_v2_b0", None, PVT, "timm", "stages.1.downsample.norm.bias"),
    ("pvt_v2_b0", None, PVT, "pvt", "block2.1.mlp.dwconv.dwconv.weight"),
    (
        "pvt_v2_b0",
        None,
        PVT,
        "transformers",
        "pvt_v2.encoder.layers.0.blocks.0.attention.value.bias",
    ),
    ("pit_ti_224", None, PIT, "timm", "transformers.1.pool.conv.weight"),
    ("pit_ti_distilled_224", None, PIT, "pit", "pools.0.fc.weight"),
    ("cvt_13", None, CVT, "cvt", "stage1.blocks.1.attn.conv_proj_v.bn.num_batches_tracked"),
    (
        "cvt_13",
        None,
        CVT,
        "transformers",
        "cvt.encoder.stages.1.layers.0.attention.attention."
        "convolution_projection_key.convolution_projection.normalization.running_var",
    ),
    ("convnext_tiny", None, CONVNEXT, "timm", "stages.1.downsample.1.weight"),
    ("convnext_tiny", None, CONVNEXT, "convnext", "downsample_layers.0.1.weight"),
    (
        "convnext_tiny",
        "dynamicvit,stage=1,locations=1:2",
        CONVNEXT,
        "convnext",
        "stages.1.3.fast_path_gamma",
    ),
    ("swin_tiny_patch4_window7_224", None, SWIN, "timm", "layers.1.downsample.norm.bias"),
    (
        "swin_tiny_patch4_window7_224",
        "dynamicvit,stage=0,locations=1:",
        SWIN,
        "swin",
        "layers.0.blocks.1.fastmlp.fc1.1.weight",
    ),
    ("regnety_160", None, REGNET, "timm", "s2.b1.downsample.conv.weight"),
    ("regnety_160", None, REGNET, "pycls", "s2.b1.f.se.f_ex.2.bias"),
    ("convit_tiny", None, CONVIT, "timm", "blocks.0.attn.gating_param"),
    ("crossvit_9_240", None, CROSSVIT, "timm", "blocks.0.fusion.1.attn.wk.weight"),
    ("crossvit_9_dagger_240", None, CROSSVIT, "crossvit", "patch_embed.1.proj.4.weight"),
    (
        "tokenlearner_vit_small_patch16_224",
        "tokenlearner,num_tokens=3,fuse=true,version=1.0",
        VIT,
        "scenic",
        "Transformer/TokenLearnerModule_0/Conv_3/kernel",
    ),
    ("lookupvit_base_patch16_224", None, LOOKUP, "vit_pytorch", "layers.1.3.to_out.1.weight"),
    ("volo_d1_224", None, VOLO, "timm", "network.3.0.attn.qkv.weight"),
]


def make(name, reduction, sizes, seed=0, **others):
    return filled(name, reduction, seed=seed, **{"num_classes": 5, **sizes, **others})


def randomised(tensors, seed=0):
    """Other values for everything that is learned or counted, as a trained checkpoint has."""
    rng = np.random.default_rng(seed)

    def other(name, value):
        if value.dtype != np.float32:
            return np.asarray(value + 375_300 * (value.ndim == 0))
        drawn = value + rng.normal(size=value.shape).astype(value.dtype)
        return np.abs(drawn) if name.endswith("running_var") else drawn

    return {name: other(name, value) for name, value in tensors.items()}


def checkpoint(model, family):
    """What a trained checkpoint of a model holds; copies of a tensor stay equal."""
    from_torch(model, unaliased(model, family), family)
    return to_torch(model, family)


def unaliased(model, family):
    tensors = to_torch(model, family)
    return randomised({k: v for k, v in tensors.items() if not k.startswith("stage_blocks.")})


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


# Not in the quick run: the second kind of names of a backbone, and what has two of everything.
SIBLINGS = {"levit", "transformers", "pycls", "deit3", "swin", "pvt", "google"}
SIBLINGS |= {"crossvit_9_240", "crossvit"}


@pytest.mark.parametrize(
    ("name", "reduction", "sizes", "family", "tensor"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * bool(SIBLINGS & {case[0], case[3]}))
        for case in FAMILIES
    ],
)
def test_a_round_trip_gives_back_every_bit(name, reduction, sizes, family, tensor):
    sizes = {"num_classes": 5} | sizes
    tensors = checkpoint(filled(name, reduction, **sizes), family)
    assert tensor in tensors
    model = filled(name, reduction, **sizes)
    from_torch(model, tensors)  # finds out the family
    assert_same(to_torch(model, family), tensors)


@pytest.mark.parametrize(
    "file", ["evo_deit", "evo_levit", "levit", "dynamicvit", "dynamicvit_lvvit"]
)
def test_official_tensors_round_trip(file):
    golden = np.load(GOLDEN / f"{file}.npz")
    meta = json.loads(str(golden["meta"]))
    tensors = {name[6:]: golden[name] for name in golden.files if name.startswith("param/")}
    name, reduction = {
        "evo_deit": ("evo_deit_small_patch16_224", "evo"),
        "evo_levit": ("evo_levit_128s", "evo"),
        "levit": ("levit_128s", "none"),
        "dynamicvit": ("deit_small_patch16_224", "dynamicvit"),
        "dynamicvit_lvvit": ("lvvit_s", "dynamicvit,locations=2:4:6"),
    }[file]
    known = {field.name for field in model_fields(name)}
    sizes = {key: value for key, value in meta["model"].items() if key in known}
    model = filled(name, reduction, **sizes)
    from_torch(model, tensors)
    assert_same(to_torch(model), tensors)


def model_fields(name):
    import dataclasses

    return dataclasses.fields(evovit_jax.models.model_entry(name).model.Config)


@pytest.mark.parametrize("name", ["levit_128s", "evo_levit_128s"])
def test_folded_batch_norm_folds_the_model_that_it_is_loaded_into(name):
    model = make(name, None, LEVIT)
    from_torch(model, unaliased(model, "levit"))
    tensors = to_torch(fuse(model))
    assert not any("bn" in key for key in tensors)
    other = make(name, None, LEVIT, seed=1)
    assert "folded" in from_torch(other, tensors)[0]
    assert_same(to_torch(other), tensors)


def test_copies_of_a_tensor_must_agree_and_one_is_enough():
    model = make("evo_levit_128s", None, LEVIT)
    tensors = to_torch(model)
    once = {k: v for k, v in tensors.items() if not k.startswith("blocks.")}
    assert from_torch(model, once) == []
    tensors["stage_blocks.1.m.0.c.weight"] = tensors["stage_blocks.1.m.0.c.weight"] + 1
    with pytest.raises(UserError, match=r"stage_blocks\.1\.m\.0\.c\.weight is not what it must be"):
        from_torch(model, tensors)


def test_a_buffer_must_be_what_the_architecture_says():
    model = make("levit_128s", None, LEVIT)
    tensors = to_torch(model)
    tensors["blocks.0.m.attention_bias_idxs"] = tensors["blocks.0.m.attention_bias_idxs"][::-1]
    with pytest.raises(UserError, match="attention_bias_idxs is not what it must be"):
        from_torch(model, tensors)
    del tensors["blocks.0.m.attention_bias_idxs"]
    assert from_torch(model, tensors) == []


def test_gaps_and_leftovers_are_errors_unless_asked_for():
    model = make("deit_tiny_patch16_224", None, VIT)
    tensors = to_torch(model)
    tensors["extra.weight"] = np.zeros(3, np.float32)
    del tensors["norm.bias"]
    with pytest.raises(UserError, match=r"lacks norm/bias; .* no place for its extra\.weight"):
        from_torch(model, tensors)
    with pytest.raises(UserError, match="lacks norm/bias"):
        from_torch(model, tensors, allow_missing="extra.*")
    notes = from_torch(model, tensors, allow_missing=True)
    assert notes == [
        "not in the checkpoint, left as they are: norm/bias",
        "in the checkpoint, ignored: extra.weight",
    ]


def test_a_wrong_shape_is_named_and_changes_nothing():
    model = make("deit_tiny_patch16_224", None, VIT)
    before = {path: np.array(v[...]) for path, v in variables(model).items()}
    tensors = randomised(to_torch(model))
    tensors["norm.weight"] = np.zeros(7, np.float32)
    with pytest.raises(UserError, match=r"norm\.weight has shape \(7,\), the model needs \(12,\)"):
        from_torch(model, tensors)
    for path, variable in variables(model).items():
        np.testing.assert_array_equal(variable[...], before[path])


@pytest.mark.parametrize(
    ("name", "sizes", "family"),
    [
        ("deit_tiny_patch16_224", VIT, "timm"),
        ("vit_tiny_patch16_224", VIT, "google"),
        ("levit_128s", LEVIT, "levit"),
        ("regnety_160", REGNET, "timm"),
    ],
)
def test_another_number_of_classes_keeps_the_heads_and_says_so(name, sizes, family):
    tensors = to_torch(make(name, None, sizes), family)
    model = make(name, None, sizes, seed=1, num_classes=7)
    heads = {p: np.array(v[...]) for p, v in variables(model).items() if p.startswith("head")}
    notes = from_torch(model, tensors)
    assert notes[0].startswith("the checkpoint has 5 classes, the model 7")
    kept = [path for path in heads if "/bn/" not in path]
    for path in kept:
        np.testing.assert_array_equal(variables(model)[path][...], heads[path])


def test_heads_must_agree_on_the_classes():
    tensors = to_torch(make("deit_tiny_patch16_224", None, VIT))
    tensors["head.bias"] = tensors["head.bias"][:3]
    with pytest.raises(UserError, match=r"heads disagree on the number of classes: \[3, 5\]"):
        from_torch(make("deit_tiny_patch16_224", None, VIT), tensors)


@pytest.mark.parametrize(
    ("name", "sizes", "image_size", "said"),
    [
        ("deit_tiny_patch16_224", VIT, 24, ["pos_embed"]),
        ("deit_tiny_distilled_patch16_224", VIT, 24, ["pos_embed"]),
        ("deit3_small_patch16_224", VIT, 24, ["pos_embed"]),
        ("evo_levit_128s", LEVIT, 80, ["poss", "blocks.3.poss"]),
        pytest.param("pit_ti_224", PIT, 24, ["pos_embed"], marks=pytest.mark.slow),
    ],
)
def test_another_grid_interpolates_positions_and_says_so(name, sizes, image_size, said):
    small = make(name, None, sizes)
    for path, variable in variables(small).items():
        if path.endswith("pos_embed"):
            variable[...] = np.full(variable.shape, 0.25, np.float32)
    tensors = to_torch(small)
    model = make(name, None, sizes | {"image_size": image_size}, seed=1)
    notes = [note for note in from_torch(model, tensors) if "interpolated" in note]
    assert sorted(note.split()[0] for note in notes) == sorted(said)
    for path, variable in variables(model).items():
        if path.endswith("pos_embed"):
            np.testing.assert_allclose(variable[...], 0.25, rtol=1e-5)


def test_another_grid_interpolates_attention_biases():
    small = make("levit_128s", None, LEVIT)
    ramp = np.add.outer(np.arange(3.0), np.arange(3.0)).ravel().astype(np.float32)
    small.stages[0][0].attn.attention_bias[...] = np.stack([ramp, -ramp])
    model = make("levit_128s", None, LEVIT | {"image_size": 80})
    notes = from_torch(model, to_torch(small))
    assert any(
        "blocks.0.m.attention_biases interpolated from (2, 9) to (2, 25)" in n for n in notes
    )
    wide = np.array(model.stages[0][0].attn.attention_bias[...]).reshape(2, 5, 5)
    expected = np.add.outer(np.linspace(0, 2, 5), np.linspace(0, 2, 5))
    np.testing.assert_allclose(wide[0], expected, atol=1e-5)


def test_official_evo_weights_switch_the_representative_token_off():
    model = make("evo_deit_tiny_patch16_224", None, VIT)
    assert model.reducer.fields.representative_token
    notes = from_torch(model, to_torch(model, "evo_deit"))
    assert notes == ["set what these weights were trained with: representative_token=False"]
    assert not model.reducer.fields.representative_token
    again = make("evo_deit_tiny_patch16_224", None, VIT)
    assert from_torch(again, to_torch(again)) == []  # our own keep it
    assert again.reducer.fields.representative_token


def test_auxiliary_heads_may_be_absent_from_official_weights():
    model = make("evo_deit_tiny_patch16_224", None, VIT)
    tensors = {k: v for k, v in to_torch(model, "evo_deit").items() if "_cls" not in k}
    notes = from_torch(model, tensors)
    assert "not in the checkpoint, left at their initial values: head_cls, norm_cls" in notes


def test_the_weights_of_a_class_token_are_not_those_of_a_pooled_head():
    dense = to_torch(make("deit_tiny_patch16_224", None, VIT))
    model = make("evo_deit_tiny_patch16_224", None, VIT)
    with pytest.raises(UserError, match=r"lacks head_cls/.*--model=deit_\* --reduction=evo") as e:
        from_torch(model, dense)
    assert "allow_missing" in str(e.value)
    assert "\n" not in str(e.value)
    notes = from_torch(model, dense, allow_missing="(norm|head)_cls/.*")  # training starts so
    assert notes[0].startswith("not in the checkpoint, left as they are: head_cls/")
    with pytest.raises(UserError, match="lacks norm/bias") as e:  # another gap, another story
        from_torch(
            model, {k: v for k, v in dense.items() if k != "norm.bias"}, allow_missing=".*_cls/.*"
        )
    assert "--reduction=evo" not in str(e.value)


def test_dense_networks_do_without_the_tradeoffs_of_evo():
    tensors = to_torch(make("evo_levit_128s", None, LEVIT))
    model = make("evo_levit_128s", "none", LEVIT)
    assert from_torch(model, tensors)[0].startswith("without use in this model: ")


def nan(value):
    return np.where(np.arange(value.size).reshape(value.shape) == 1, np.nan, value)


@pytest.mark.parametrize("bad", [nan, lambda v: v + np.inf, lambda v: v.astype("f8") + 1e300])
def test_values_that_are_no_finite_numbers_are_refused_unless_asked_for(bad):
    model = make("deit_tiny_patch16_224", None, VIT)
    before = np.array(model.head.bias[...])
    tensors = to_torch(model)
    tensors["head.bias"] = bad(tensors["head.bias"])
    with pytest.raises(UserError, match=r"NaN or Inf in head\.bias; allow_nonfinite"):
        from_torch(model, tensors)
    np.testing.assert_array_equal(model.head.bias[...], before)
    assert from_torch(model, tensors, allow_nonfinite=True) == ["NaN or Inf in: head.bias"]
    assert not np.isfinite(model.head.bias[...]).all()


def test_whole_numbers_for_real_ones_are_said():
    model = make("levit_128s", None, LEVIT)
    tensors = to_torch(model)
    tensors["head.l.bias"] = np.arange(5)
    notes = from_torch(model, tensors)
    assert notes == ["whole numbers where the model has real ones: head.l.bias"]
    np.testing.assert_array_equal(model.head.linear.bias[...], np.arange(5))


def test_a_tensor_that_is_no_numbers_is_refused():
    model = make("deit_tiny_patch16_224", None, VIT)
    for values in (np.array(["a"] * 5), np.ones(5, np.complex64)):
        with pytest.raises(UserError, match=r"tensor head\.bias is of .*, which no weights are"):
            from_torch(model, to_torch(model) | {"head.bias": values})
