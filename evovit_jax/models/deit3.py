"""The table of DeiT-III models (Touvron et al., 2022), trained on ImageNet-1k.

Tested in tests/models/registry_test.py.
"""

from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.vit import VisionTransformer

SIZES = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "medium": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
}
# Top-1 at an image size.
_PUBLISHED = {
    ("small", 224): 81.4,
    ("small", 384): 83.4,
    ("medium", 224): 83.0,
    ("base", 224): 83.8,
    ("base", 384): 85.0,
    ("large", 224): 84.9,
    ("large", 384): 85.8,
    ("huge", 224): 85.2,
}
# timm's crop fractions, 0.9 and 1.
TRANSFORMS = {224: EvalTransform(resize=248), 384: EvalTransform(image_size=384, resize=384)}


def _entry(size: str, image_size: int, top1: float) -> Entry:
    return Entry(
        VisionTransformer,
        SIZES[size] | {"image_size": image_size, "class_position": False, "init_values": 1e-6},
        transform=TRANSFORMS[image_size],
        top1=top1,
        weights=f"https://dl.fbaipublicfiles.com/deit/deit_3_{size}_{image_size}_1k.pth",
    )


MODELS = {
    f"deit3_{size}_patch{SIZES[size].get('patch_size', 16)}_{image_size}": _entry(
        size, image_size, top1
    )
    for (size, image_size), top1 in _PUBLISHED.items()
}
