"""The table of DINOv2 (Oquab et al., 2023), without and with registers (Darcet et al., 2023).

facebookresearch/dinov2 interpolates positions without registers in a way of its own for images of
another size: `resizing="dinov2"`. At 518 pixels both are the same.

Tested in tests/models/encoder_table_test.py.
"""

from evovit_jax.models.encoder import Encoder
from evovit_jax.models.registry import Entry, EvalTransform

SIZES = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "giant": {
        "embed_dim": 1536,
        "depth": 40,
        "num_heads": 24,
        "mlp": "packed_swiglu",
        "mlp_ratio": 2.66667 * 2,
    },
}
SHARED = {"image_size": 518, "patch_size": 14, "init_values": 1e-5, "num_classes": 0}
KINDS = {"patch14": {}, "patch14_reg4": {"reg_tokens": 4, "class_position": False}}

MODELS = {
    f"vit_{size}_{kind}_dinov2.lvd142m": Entry(
        Encoder,
        SHARED | sizes | settings,
        transform=EvalTransform(image_size=518, resize=518),
        weights=f"hf://timm/vit_{size}_{kind}_dinov2.lvd142m",
    )
    for size, sizes in SIZES.items()
    for kind, settings in KINDS.items()
}
