"""The encoders by name: parameters, multiply-adds and transforms as timm 1.0.31 has them."""

import pytest
from tiny import some_slow

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models import model_entry
from evovit_jax.models.__main__ import counted
from evovit_jax.models.encoder import Encoder
from evovit_jax.models.registry import IMAGENET_MEAN, IMAGENET_STD

# Parameters, image size, GMACs of it, GMACs at 224 pixels where that is another size, and width of
# the head (0 without).
REAL = {
    "vit_small_patch14_dinov2.lvd142m": (22_056_192, 518, 46.697, 6.124, 0),
    "vit_base_patch14_dinov2.lvd142m": (86_579_712, 518, 151.574, 23.161, 0),
    "vit_large_patch14_dinov2.lvd142m": (304_367_616, 518, 506.804, 81.012, 0),
    "vit_giant_patch14_dinov2.lvd142m": (1_136_479_232, 518, 1783.343, 299.390, 0),
    "vit_small_patch14_reg4_dinov2.lvd142m": (22_057_344, 518, 46.883, 6.228, 0),
    "vit_base_patch14_reg4_dinov2.lvd142m": (86_582_016, 518, 152.116, 23.539, 0),
    "vit_large_patch14_reg4_dinov2.lvd142m": (304_370_688, 518, 508.551, 82.322, 0),
    "vit_giant_patch14_reg4_dinov2.lvd142m": (1_136_483_840, 518, 1789.222, 304.175, 0),
    "vit_base_patch16_siglip_224.v2_webli": (92_884_224, 224, 17.708, None, 0),
    "vit_base_patch16_siglip_224.webli": (92_884_224, 224, 17.708, None, 0),
    "vit_base_patch16_siglip_256.v2_webli": (92_930_304, 256, 23.411, None, 0),
    "vit_base_patch16_siglip_384.v2_webli": (93_176_064, 384, 56.064, None, 0),
    "vit_base_patch16_siglip_512.v2_webli": (93_520_128, 512, 108.120, None, 0),
    "vit_base_patch32_siglip_256.v2_webli": (94_552_320, 256, 5.744, None, 0),
    "vit_giantopt_patch16_siglip_256.v2_webli": (1_163_168_256, 256, 299.498, None, 0),
    "vit_giantopt_patch16_siglip_384.v2_webli": (1_163_659_776, 384, 696.490, None, 0),
    "vit_large_patch16_siglip_256.v2_webli": (315_956_224, 256, 81.280, None, 0),
    "vit_large_patch16_siglip_384.v2_webli": (316_283_904, 384, 191.926, None, 0),
    "vit_large_patch16_siglip_512.v2_webli": (316_742_656, 512, 363.743, None, 0),
    "vit_so400m_patch14_siglip_224.v2_webli": (427_680_704, 224, 110.177, None, 0),
    "vit_so400m_patch14_siglip_378.v2_webli": (428_225_600, 378, 335.173, None, 0),
    "vit_so400m_patch16_siglip_256.v2_webli": (427_888_064, 256, 110.230, None, 0),
    "vit_so400m_patch16_siglip_384.v2_webli": (428_256_704, 384, 259.468, None, 0),
    "vit_so400m_patch16_siglip_512.v2_webli": (428_772_800, 512, 489.805, None, 0),
    "vit_base_patch16_clip_224.openai": (86_193_152, 224, 17.563, None, 512),
    "vit_base_patch16_clip_quickgelu_224.openai": (86_193_152, 224, 17.563, None, 512),
    "vit_base_patch32_clip_224.openai": (87_849_728, 224, 4.409, None, 512),
    "vit_base_patch32_clip_quickgelu_224.openai": (87_849_728, 224, 4.409, None, 512),
    "vit_large_patch14_clip_224.openai": (303_966_976, 224, 81.013, None, 768),
    "vit_large_patch14_clip_336.openai": (304_294_656, 336, 190.960, None, 768),
    "vit_large_patch14_clip_quickgelu_224.openai": (303_966_976, 224, 81.013, None, 768),
    "vit_large_patch14_clip_quickgelu_336.openai": (304_294_656, 336, 190.960, None, 768),
    "vit_base_patch16_dinov3.lvd1689m": (85_641_216, 256, 23.575, 17.932, 0),
    "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m": (85_659_648, 256, 23.575, 17.932, 0),
    "vit_base_patch16_dinov3_qkvb.lvd1689m": (85_659_648, 256, 23.575, 17.932, 0),
    "vit_huge_plus_patch16_dinov3.lvd1689m": (840_509_440, 256, 224.775, 172.113, 0),
    "vit_huge_plus_patch16_dinov3_qkvb.lvd1689m": (840_591_360, 256, 224.775, 172.113, 0),
    "vit_large_patch16_dinov3.lvd1689m": (303_079_424, 256, 82.369, 62.840, 0),
    "vit_large_patch16_dinov3.sat493m": (303_079_424, 256, 82.369, 62.840, 0),
    "vit_large_patch16_dinov3_qkvb.lvd1689m": (303_128_576, 256, 82.369, 62.840, 0),
    "vit_large_patch16_dinov3_qkvb.sat493m": (303_128_576, 256, 82.369, 62.840, 0),
    "vit_small_patch16_dinov3.lvd1689m": (21_586_944, 256, 6.245, 4.698, 0),
    "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m": (21_596_160, 256, 6.245, 4.698, 0),
    "vit_small_patch16_dinov3_qkvb.lvd1689m": (21_596_160, 256, 6.245, 4.698, 0),
    "vit_small_plus_patch16_dinov3.lvd1689m": (28_683_264, 256, 8.093, 6.121, 0),
    "vit_small_plus_patch16_dinov3_qkvb.lvd1689m": (28_692_480, 256, 8.093, 6.121, 0),
    "vit_pe_core_base_patch16_224.fb": (93_673_984, 224, 17.802, None, 1024),
    "vit_pe_core_large_patch14_336.fb": (317_152_256, 336, 192.182, None, 1024),
    "vit_pe_core_small_patch16_384.fb": (23_783_168, 384, 15.662, None, 512),
    "vit_pe_core_tiny_patch16_384.fb": (6_141_056, 384, 4.725, None, 512),
    "vit_base_patch16_224.mae": (85_798_656, 224, 17.563, None, 0),
    "vit_large_patch16_224.mae": (303_301_632, 224, 61.554, None, 0),
}
HALF, CLIP_MEAN, CLIP_STD = (0.5,) * 3, (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
# Crop fraction, mean, standard deviation, by words of the names; the first that is there counts.
TRANSFORMS = {
    "sat493m": (1.0, (0.43, 0.411, 0.296), (0.213, 0.156, 0.143)),
    "dino": (1.0, IMAGENET_MEAN, IMAGENET_STD),
    "siglip": (0.9, HALF, HALF),
    "large_patch14_clip": (1.0, CLIP_MEAN, CLIP_STD),
    "clip": (0.9, CLIP_MEAN, CLIP_STD),
    "pe_core": (1.0, HALF, HALF),
    "mae": (0.9, IMAGENET_MEAN, IMAGENET_STD),
}
# One of each family in the quick run: tracing a network takes seconds.
QUICK = {"vit_pe_core_tiny_patch16_384.fb", "vit_small_plus_patch16_dinov3_qkvb.lvd1689m"}


@pytest.mark.parametrize("name", some_slow(REAL, QUICK))
def test_parameters_and_gmacs_are_those_of_timm(name):
    parameters, size, native, at_224, classes = REAL[name]
    entry = model_entry(name)
    settings = dict(entry.settings)
    assert (settings.get("image_size", 224), settings["num_classes"]) == (size, classes)
    found, cost = counted(Encoder, tuple(sorted(settings.items())), "none")
    assert (found, round(cost, 3)) == (parameters, native)
    if at_224 is not None:
        # Made for that size: a program that interpolates positions counts that too, once a batch.
        settings["image_size"] = 224
        _, cost = counted(Encoder, tuple(sorted(settings.items())), "none")
        assert round(cost, 3) == at_224


def test_transforms_are_those_of_timm():
    for name, (_, size, *_) in REAL.items():
        transform = model_entry(name).transform
        crop, mean, std = next(values for words, values in TRANSFORMS.items() if words in name)
        expected = (size, int(size / crop), "bicubic")
        assert (transform.image_size, transform.resize, transform.interpolation) == expected, name
        assert tuple(round(x, 4) for x in transform.mean) == mean, name
        assert tuple(round(x, 4) for x in transform.std) == std, name


def test_names_do_without_the_tag_and_say_what_is_near():
    entry = model_entry("vit_base_patch14_dinov2")
    assert entry is model_entry("vit_base_patch14_dinov2.lvd142m")
    assert entry.settings["embed_dim"] == 768
    # As in timm, the first of several tags.
    assert model_entry("vit_large_patch16_dinov3").weights.endswith("dinov3.lvd1689m")
    # A name that has a row of its own is that row, and a tag tells others apart.
    assert model_entry("vit_base_patch16_224").settings.get("num_classes") is None
    assert model_entry("vit_base_patch16_224.mae").model is Encoder
    tagged = model_entry("vit_small_patch16_224.augreg_in21k_ft_in1k")
    assert tagged is model_entry("vit_small_patch16_224")
    with pytest.raises(UserError, match=r"did you mean vit_base_patch14_dinov2\.lvd142m"):
        model_entry("vit_base_patch14_dinov2.lvd142")
    with pytest.raises(UserError, match=r"unknown model .* did you mean .*siglip"):
        evovit_jax.create_model("vit_base_patch16_siglp_224")
