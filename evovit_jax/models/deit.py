"""The table of DeiT models (Touvron et al., 2021) and of Evo-ViT on them (Xu et al., 2022).

An `evo_` model is the model of that name with `reduction=evo`, the pooled head, and the auxiliary
class-token head in training.

Tested in tests/models/registry_test.py.
"""

from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.vit import VisionTransformer

SIZES = {
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "base": {"embed_dim": 768, "num_heads": 12},
}
AT_384 = EvalTransform(image_size=384, resize=438)
_FILES = "https://dl.fbaipublicfiles.com/deit/"
_OFFICIAL = "https://github.com/YifanXu74/Evo-ViT"

MODELS = {
    "deit_tiny_patch16_224": Entry(
        VisionTransformer,
        SIZES["tiny"],
        top1=72.2,
        weights=_FILES + "deit_tiny_patch16_224-a1311bcf.pth",
    ),
    "deit_small_patch16_224": Entry(
        VisionTransformer,
        SIZES["small"],
        top1=79.8,
        weights=_FILES + "deit_small_patch16_224-cd65a155.pth",
    ),
    "deit_base_patch16_224": Entry(
        VisionTransformer,
        SIZES["base"],
        top1=81.8,
        weights=_FILES + "deit_base_patch16_224-b5f2ef4d.pth",
    ),
    "deit_base_patch16_384": Entry(
        VisionTransformer,
        SIZES["base"] | {"image_size": 384},
        transform=AT_384,
        top1=82.9,
        weights=_FILES + "deit_base_patch16_384-8de9b5d1.pth",
    ),
}
# Distilled DeiT: top-1 and the file of the weights.
_DISTILLED = {
    ("tiny", 224): (74.5, "b40b3cf7"),
    ("small", 224): (81.2, "649709d9"),
    ("base", 224): (83.4, "df68dfff"),
    ("base", 384): (85.2, "d0272ac0"),
}
MODELS |= {
    f"deit_{size}_distilled_patch16_{image_size}": Entry(
        VisionTransformer,
        SIZES[size] | {"image_size": image_size, "distilled": True},
        transform=EvalTransform() if image_size == 224 else AT_384,
        top1=top1,
        weights=f"{_FILES}deit_{size}_distilled_patch16_{image_size}-{digest}.pth",
    )
    for (size, image_size), (top1, digest) in _DISTILLED.items()
}


def _evo(size: str, image_size: int, top1: float | None) -> Entry:
    return Entry(
        VisionTransformer,
        SIZES[size] | {"image_size": image_size, "pool": "avg"},
        reduction="evo",
        transform=EvalTransform() if image_size == 224 else AT_384,
        top1=top1,
        weights=_OFFICIAL if top1 else "",
    )


MODELS |= {
    "evo_deit_tiny_patch16_224": _evo("tiny", 224, 72.0),
    "evo_deit_small_patch16_224": _evo("small", 224, 79.4),
    "evo_deit_base_patch16_224": _evo("base", 224, 81.3),
    "evo_deit_small_patch16_384": _evo("small", 384, None),
    "evo_deit_base_patch16_384": _evo("base", 384, 82.0),
}
