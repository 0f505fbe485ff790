"""The table of the Perception Encoder, core (Bolya et al., 2025).

The logits are the projection into the space that images share with texts.

Tested in tests/models/encoder_table_test.py.
"""

from evovit_jax.models.encoder import Encoder
from evovit_jax.models.registry import INCEPTION, Entry, at_crop

# Their image sizes, which coordinates of other sizes are rescaled to, and their projections.
SIZES = {
    "tiny_patch16": {"embed_dim": 192, "num_heads": 3, "image_size": 384, "num_classes": 512},
    "small_patch16": {"embed_dim": 384, "num_heads": 6, "image_size": 384, "num_classes": 512},
    "base_patch16": {"embed_dim": 768, "num_heads": 12, "image_size": 224, "num_classes": 1024},
    "large_patch14": {
        "embed_dim": 1024,
        "depth": 24,
        "num_heads": 16,
        "patch_size": 14,
        "image_size": 336,
        "num_classes": 1024,
    },
}
SHARED = {
    "pre_norm": True,
    "patch_bias": False,
    "norm_eps": 1e-5,
    "rope": "axial",
    "pool": "map",
    "map_heads": 8,
    "map_mlp_ratio": 4.0,
}


def _entry(name: str, size: str, sizes: dict) -> Entry:
    side = sizes["image_size"] // sizes.get("patch_size", 16)
    return Entry(
        Encoder,
        SHARED | sizes | {"rope_reference": side},
        transform=at_crop(sizes["image_size"], 1.0, *INCEPTION),
        weights=f"hf://timm/{name}",
    )


MODELS = {
    name: _entry(name, size, sizes)
    for size, sizes in SIZES.items()
    for name in (f"vit_pe_core_{size}_{sizes['image_size']}.fb",)
}
