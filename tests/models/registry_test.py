"""Every model by name: its size, its transform, its row in docs/models.md."""

import dataclasses
import math
import pathlib

import jax
import pytest
from flax import nnx
from tiny import some_slow

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models import EvalTransform, model_entry
from evovit_jax.models.__main__ import BEGIN, END, row
from evovit_jax.models.registry import InitKeys
from evovit_jax.models.variables import Skeleton

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "models.md"
# Parameters, auxiliary heads included, and GMACs of one image; None: nothing to compare with.
# timm 1.0.31, and the official code of CvT and of Evo-ViT (representative token: 0.5 % more GMACs
# on DeiT).
EXPECTED = {
    "convnext_base.fb_in1k": (88_591_464, 15.355),
    "convnext_large.fb_in1k": (197_767_336, None),
    "convnext_small.fb_in1k": (50_223_688, 8.684),
    "convnext_tiny.fb_in1k": (28_589_128, 4.456),
    "cvt_13": (19_997_480, 4.566),
    "cvt_13_384": (19_997_480, 16.269),
    "cvt_21": (31_622_696, 7.178),
    "cvt_21_384": (31_622_696, 24.849),
    "deit3_base_patch16_224": (86_585_320, 17.564),
    "deit3_base_patch16_384": (86_877_160, 55.484),
    "deit3_huge_patch14_224": (632_126_440, 167.295),
    "deit3_large_patch16_224": (304_374_760, 61.555),
    "deit3_large_patch16_384": (304_763_880, None),
    "deit3_medium_patch16_224": (38_849_512, 7.991),
    "deit3_small_patch16_224": (22_059_496, 4.599),
    "deit3_small_patch16_384": (22_205_416, 15.490),
    "deit_base_distilled_patch16_224": (87_338_192, 17.657),
    "deit_base_distilled_patch16_384": (87_630_032, 55.591),
    "deit_base_patch16_224": (86_567_656, 17.564),
    "deit_base_patch16_384": (86_859_496, 55.484),
    "deit_small_distilled_patch16_224": (22_436_432, 4.624),
    "deit_small_patch16_224": (22_050_664, 4.599),
    "deit_tiny_distilled_patch16_224": (5_910_800, 1.261),
    "deit_tiny_patch16_224": (5_717_416, 1.254),
    "evo_deit_base_patch16_224": (87_338_192, 11.658),
    "evo_deit_base_patch16_384": (87_630_032, 36.112),
    "evo_deit_small_patch16_224": (22_436_432, 3.033),
    "evo_deit_small_patch16_384": (22_582_352, 9.881),
    "evo_deit_tiny_patch16_224": (5_910_800, 0.818),
    "evo_levit_128": (10_041_022, 0.305),
    "evo_levit_128_384": (10_162_622, None),
    "evo_levit_128s": (8_606_651, 0.256),
    "evo_levit_128s_384": (8_728_251, None),
    "evo_levit_192": (11_803_526, 0.510),
    "evo_levit_192_384": (11_976_806, None),
    "evo_levit_256": (20_035_278, 0.880),
    "evo_levit_256_384": (20_266_318, 2.763),
    "evo_levit_384": (40_836_830, 1.849),
    "evo_levit_384_384": (41_177_310, 5.622),
    "levit_128": (9_213_936, 0.405),
    "levit_128s": (7_777_058, 0.305),
    "levit_192": (10_947_069, 0.657),
    "levit_256": (18_893_876, 1.127),
    "levit_384": (39_128_836, 2.352),
    "lvvit_m": (55_830_544, None),
    "lvvit_s": (26_151_824, None),
    "pit_b_224": (73_764_840, 12.402),
    "pit_b_distilled_224": (74_790_096, 12.482),
    "pit_s_224": (23_461_912, 2.871),
    "pit_s_distilled_224": (24_039_056, 2.897),
    "pit_ti_224": (4_847_272, 0.699),
    "pit_ti_distilled_224": (5_104_336, 0.705),
    "pit_xs_224": (10_618_888, 1.395),
    "pit_xs_distilled_224": (11_003_984, 1.407),
    "pvt_v2_b0": (3_666_760, 0.566),
    "pvt_v2_b1": (14_009_000, 2.108),
    "pvt_v2_b2": (25_362_856, 4.027),
    "pvt_v2_b2_li": (22_553_512, 3.889),
    "pvt_v2_b3": (45_238_696, 6.897),
    "pvt_v2_b4": (62_556_072, 10.101),
    "pvt_v2_b5": (81_956_008, 11.717),
    "swin_base_patch4_window12_384.ms_in1k": (87_904_232, None),
    "swin_base_patch4_window7_224.ms_in1k": (87_768_224, 15.431),
    "swin_small_patch4_window7_224.ms_in1k": (49_606_258, 8.741),
    "swin_tiny_patch4_window7_224.ms_in1k": (28_288_354, 4.491),
    "regnety_160": (83_590_140, 15.912),
    "convit_base": (86_540_040, 17.505),
    "convit_small": (27_777_322, 5.747),
    "convit_tiny": (5_710_512, 1.252),
    "crossvit_15_240": (27_528_464, 5.791),
    "crossvit_15_dagger_240": (28_209_008, 6.112),
    "crossvit_15_dagger_408": (28_500_080, 21.399),
    "crossvit_18_240": (43_271_408, 9.031),
    "crossvit_18_dagger_240": (44_266_976, 9.473),
    "crossvit_18_dagger_408": (44_606_560, 32.409),
    "crossvit_9_240": (8_553_296, 1.841),
    "crossvit_9_dagger_240": (8_776_592, 1.979),
    "crossvit_base_240": (105_025_232, 21.191),
    "crossvit_small_240": (26_856_272, 5.616),
    "crossvit_tiny_240": (7_014_800, 1.563),
    "vit_base_patch16_224": (86_567_656, 17.564),
    "vit_base_patch16_384": (86_859_496, 55.484),
    "vit_small_patch16_224": (22_050_664, 4.599),
    "vit_small_patch16_384": (22_196_584, 15.490),
    "vit_tiny_patch16_224": (5_717_416, 1.254),
    "vit_tiny_patch16_384": (5_790_376, None),
    "volo_d1_224": (26_632_040, 6.919),
    "volo_d1_384": (26_777_960, 22.680),
}
# Without the heads that only training has, in millions (the official Evo-ViT code).
IN_INFERENCE = {
    "evo_deit_tiny_patch16_224": 5.717,
    "evo_deit_small_patch16_224": 22.051,
    "evo_deit_base_patch16_224": 86.568,
    "evo_deit_small_patch16_384": 22.197,
    "evo_deit_base_patch16_384": 86.859,
    "evo_levit_128s": 7.835,
    "evo_levit_128": 9.269,
    "evo_levit_192": 11.032,
    "evo_levit_256": 19.007,
    "evo_levit_384": 39.296,
    "evo_levit_256_384": 19.238,
    "evo_levit_384_384": 39.636,
}


def parameters(name: str) -> dict[str, int]:
    """The size of each parameter by path, without computing any."""
    params, _ = Skeleton.variables(nnx.eval_shape(lambda: evovit_jax.create_model(name)))
    return {path: math.prod(value.shape) for path, value in params.items()}


def test_every_expected_model_is_there():
    assert set(EXPECTED) <= {*evovit_jax.list_models()}


# One of each family in the quick run: tracing a network takes seconds.
TRACED = {"deit_tiny_patch16_224", "evo_levit_128s", "lvvit_s", "regnety_160", "levit_128s"}
TRACED |= {"pit_ti_224", "convit_tiny", "volo_d1_224"}
SHOWN = {"deit_tiny_patch16_224", "levit_128s", "regnety_160"}
# Whose parameters are counted in the quick run beside these; siblings differ in numbers alone.
MADE = TRACED | {"deit3_small_patch16_384", "deit_small_distilled_patch16_224"}
MADE |= {"evo_deit_tiny_patch16_224", "evo_levit_256_384", "pvt_v2_b2_li", "vit_tiny_patch16_384"}


@pytest.mark.parametrize("name", some_slow(sorted(EXPECTED), MADE))
def test_parameter_counts(name):
    assert sum(parameters(name).values()) == EXPECTED[name][0]


@pytest.mark.parametrize("name", some_slow(sorted(IN_INFERENCE), MADE))
def test_parameter_counts_without_training_heads(name):
    training = ("head_cls/", "head_cls_dist/", "norm_cls/")
    kept = [size for path, size in parameters(name).items() if not path.startswith(training)]
    assert round(sum(kept) / 1e6, 3) == IN_INFERENCE[name]


@pytest.mark.parametrize("name", some_slow(evovit_jax.list_models(), SHOWN))
def test_docs_have_the_model_as_it_is(name):
    cells = row(name)
    again = "write it again: python -m evovit_jax.models --write=docs/models.md"
    assert f"| {' | '.join(cells)} |" in DOCS.read_text().splitlines(), again
    _, gmacs = EXPECTED.get(name, (None, None))
    if gmacs:
        assert float(cells[3]) == pytest.approx(gmacs, rel=0.01)


def test_docs_have_no_other_model():
    found = DOCS.read_text().partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    assert len(found) == 2 + len(evovit_jax.list_models())


def test_names_match_patterns():
    assert evovit_jax.list_models("evo_levit_256*") == ["evo_levit_256", "evo_levit_256_384"]
    assert evovit_jax.list_models("nothing*") == []


def test_an_unknown_name_suggests_close_ones():
    with pytest.raises(UserError, match=r"did you mean .*deit_small_patch16_224"):
        evovit_jax.create_model("deit_smal_patch16_224")
    with pytest.raises(UserError, match=r"'zzzzzz'; python -m evovit_jax\.models lists them all"):
        model_entry("zzzzzz")
    with pytest.raises(UserError, match="no field 'widht'"):
        evovit_jax.create_model("deit_tiny_patch16_224", widht=3)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("deit_tinny", "deit_tiny_patch16_224"),
        ("deit_s", "deit_small_patch16_224"),
        ("evo_deit_smal", "evo_deit_small_patch16_224"),
        ("evo_levit", "evo_levit_128"),
    ],
)
def test_a_name_that_is_cut_short_is_understood(name, first):
    with pytest.raises(UserError, match=rf"did you mean {first}[ ?].* lists them all"):
        model_entry(name)


def test_transforms_are_those_of_the_authors():
    at_224, at_384 = EvalTransform(), EvalTransform(image_size=384, resize=438)
    half = (0.5, 0.5, 0.5)
    expected = {
        "deit_small_patch16_224": at_224,
        "evo_deit_base_patch16_384": at_384,
        "levit_256": at_224,
        "evo_levit_256_384": EvalTransform(image_size=384, resize=438),
        "deit3_small_patch16_224": EvalTransform(resize=248),
        "deit3_small_patch16_384": EvalTransform(image_size=384, resize=384),
        "vit_tiny_patch16_224": EvalTransform(resize=248, mean=half, std=half),
        "vit_base_patch16_384": EvalTransform(image_size=384, resize=384, mean=half, std=half),
        "lvvit_s": EvalTransform(resize=248),
        "convit_tiny": at_224,
        "crossvit_15_dagger_240": EvalTransform(image_size=240, resize=274),
        "crossvit_15_dagger_408": EvalTransform(image_size=408, resize=408),
        "volo_d1_224": EvalTransform(resize=233),
        "volo_d1_384": EvalTransform(image_size=384, resize=384),
        "regnety_160": at_224,
        "pvt_v2_b0": EvalTransform(resize=248),
        "convnext_tiny": at_224,
        "convnext_base.fb_in22k_ft_in1k_384": EvalTransform(image_size=384, resize=384),
        "pit_b_distilled_224": EvalTransform(resize=248),
        "swin_tiny_patch4_window7_224.ms_in1k": EvalTransform(resize=248),
        "swin_base_patch4_window12_384.ms_in1k": EvalTransform(image_size=384, resize=384),
        "cvt_21": at_224,
        "cvt_21_384": EvalTransform(image_size=384, resize=384),
    }
    assert {name: model_entry(name).transform for name in expected} == expected


def test_image_sizes_of_names_and_transforms_agree():
    for name in evovit_jax.list_models():
        entry = model_entry(name)
        defaults = {field.name: field.default for field in dataclasses.fields(entry.model.Config)}
        size = entry.settings.get("image_size", defaults["image_size"])
        assert entry.transform.image_size == size, name
        if name.endswith(("_224", "_384")):
            assert name.endswith(str(size)) or name in ("levit_384", "evo_levit_384"), name


def test_the_same_seed_makes_the_same_weights():
    def weights(seed):
        return nnx.state(evovit_jax.create_model("deit_tiny_patch16_224", depth=1, seed=seed))

    first, again, other = jax.tree.leaves(weights(0)), weights(0), weights(1)
    assert all((a == b).all() for a, b in zip(first, jax.tree.leaves(again), strict=True))
    assert not all((a == b).all() for a, b in zip(first, jax.tree.leaves(other), strict=True))


def test_keys_are_those_of_flax():
    ours, flax = InitKeys(3), nnx.Rngs(params=3)
    for _ in range(4):
        a, b = (jax.random.key_data(keys.params()) for keys in (ours, flax))
        assert bool((a == b).all())
    assert bool((ours.params() != InitKeys(3).params()).all())
