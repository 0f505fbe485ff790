"""The table of the image towers of CLIP (Radford et al., 2021) and of OpenCLIP's on LAION-2B.

The logits are the projection into the space that images share with texts. OpenAI's weights were
trained with QuickGELU: they belong in the names with `quickgelu`, those without run them with the
exact GELU, as timm does. LAION's were trained with the exact one.

Tested in tests/models/encoder_table_test.py.
"""

from evovit_jax.models.encoder import Encoder
from evovit_jax.models.registry import INCEPTION, Entry, at_crop

SIZES = {
    "base_patch32": {"embed_dim": 768, "depth": 12, "num_heads": 12, "patch_size": 32},
    "base_patch16": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large_patch14": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "patch_size": 14},
    "huge_patch14": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
    "giant_patch14": {
        "embed_dim": 1408,
        "depth": 40,
        "num_heads": 16,
        "patch_size": 14,
        "mlp_ratio": 48 / 11,
    },
    "gigantic_patch14": {
        "embed_dim": 1664,
        "depth": 48,
        "num_heads": 16,
        "patch_size": 14,
        "mlp_ratio": 64 / 13,
    },
}
# Width of the projection.
PROJECTIONS = {
    "base_patch32": 512,
    "base_patch16": 512,
    "large_patch14": 768,
    "huge_patch14": 1024,
    "giant_patch14": 1024,
    "gigantic_patch14": 1280,
}
SHARED = {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
OPENAI = (
    ("base_patch32", 224, 0.9),
    ("base_patch16", 224, 0.9),
    ("large_patch14", 224, 1.0),
    ("large_patch14", 336, 1.0),
)
# timm's crop fractions.
LAION = {
    "base_patch32": 0.9,
    "base_patch16": 1.0,
    "large_patch14": 1.0,
    "huge_patch14": 1.0,
    "giant_patch14": 1.0,
    "gigantic_patch14": 1.0,
}


def _entry(size: str, image_size: int, tag: str, crop: float, activation: str) -> Entry:
    given = {"num_classes": PROJECTIONS[size], "image_size": image_size, "activation": activation}
    # The large one on LAION-2B alone was trained on images in [-1, 1].
    statistics = INCEPTION if (size, tag) == ("large_patch14", "laion2b") else (MEAN, STD)
    return Entry(
        Encoder,
        SHARED | SIZES[size] | given,
        transform=at_crop(image_size, crop, *statistics),
        weights=f"hf://timm/vit_{size}_clip_{image_size}.{tag}",
    )


MODELS = {
    f"vit_{size}_clip_{kind}{image_size}.openai": _entry(
        size, image_size, "openai", crop, activation
    )
    for size, image_size, crop in OPENAI
    for kind, activation in (("quickgelu_", "quick_gelu"), ("", "gelu"))
} | {
    f"vit_{size}_clip_224.laion2b": _entry(size, 224, "laion2b", crop, "gelu")
    for size, crop in LAION.items()
}
