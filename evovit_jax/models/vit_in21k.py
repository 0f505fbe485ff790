"""The table of ViT as timm has it (Dosovitskiy et al., 2021; Steiner et al., 2021).

The published weights were trained on ImageNet-21k and fine-tuned, on images in [-1, 1].

Tested in tests/models/registry_test.py.
"""

from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.vit import VisionTransformer

SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}
_HALF = (0.5, 0.5, 0.5)
# timm's crop fractions, 0.9 and 1.
TRANSFORMS = {
    224: EvalTransform(resize=248, mean=_HALF, std=_HALF),
    384: EvalTransform(image_size=384, resize=384, mean=_HALF, std=_HALF),
}
# Top-1 at an image size (timm's own results), and the tag of the weights on the hub.
_PUBLISHED = {
    ("tiny", 224): (75.5, "augreg_in21k_ft_in1k"),
    ("tiny", 384): (78.4, "augreg_in21k_ft_in1k"),
    ("small", 224): (81.4, "augreg_in21k_ft_in1k"),
    ("small", 384): (83.8, "augreg_in21k_ft_in1k"),
    ("base", 224): (85.1, "augreg2_in21k_ft_in1k"),
    ("base", 384): (86.0, "augreg_in21k_ft_in1k"),
}

MODELS = {
    f"vit_{size}_patch16_{image_size}": Entry(
        VisionTransformer,
        SIZES[size] | {"image_size": image_size},
        transform=TRANSFORMS[image_size],
        top1=top1,
        weights=f"hf://timm/vit_{size}_patch16_{image_size}.{tag}",
    )
    for (size, image_size), (top1, tag) in _PUBLISHED.items()
}
