"""The table of DINOv3 (Simeoni et al., 2025).

As timm has it the pooled features are the mean of the patches; the authors take the class token,
`pool="token"`. The names with `qkvb` have the biases of queries and values that the released
weights hold; they are zero. The weights of `sat493m` are for satellite images, `eupe` are by other
authors.

Tested in tests/models/encoder_table_test.py.
"""

from evovit_jax.models.encoder import Encoder
from evovit_jax.models.registry import Entry, EvalTransform

SWIGLU = {"mlp": "swiglu", "mlp_multiple": 8}
SIZES = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "small_plus": {"embed_dim": 384, "depth": 12, "num_heads": 6} | SWIGLU,
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge_plus": {"embed_dim": 1280, "depth": 32, "num_heads": 20} | SWIGLU,
    "7b": {"embed_dim": 4096, "depth": 40, "num_heads": 32, "mlp_ratio": 2.0}
    | SWIGLU
    | {"mlp_multiple": 64},
}
SHARED = {
    "image_size": 256,
    "reg_tokens": 4,
    "class_position": False,
    "learned_positions": False,
    "rope": "dinov3",
    "qkv_bias": False,
    "init_values": 1e-5,
    "norm_eps": 1e-5,
    "pool": "avg",
    "fc_norm": False,
    "num_classes": 0,
}
KINDS = {"": {}, "_qkvb": {"qkv_bias": True, "key_bias": False}}
# Beside "lvd1689m", which all sizes have.
TAGS = {
    ("large", ""): ("sat493m",),
    ("large", "_qkvb"): ("sat493m",),
    ("7b", ""): ("sat493m",),
    ("small", "_qkvb"): ("eupe_lvd1689m",),
    ("base", "_qkvb"): ("eupe_lvd1689m",),
}
TRANSFORM = EvalTransform(image_size=256, resize=256)
OF_SATELLITES = EvalTransform(256, 256, mean=(0.43, 0.411, 0.296), std=(0.213, 0.156, 0.143))

MODELS = {
    f"vit_{size}_patch16_dinov3{kind}.{tag}": Entry(
        Encoder,
        SHARED | sizes | settings,
        transform=OF_SATELLITES if tag == "sat493m" else TRANSFORM,
        weights=f"hf://timm/vit_{size}_patch16_dinov3{kind}.{tag}",
    )
    for size, sizes in SIZES.items()
    for kind, settings in KINDS.items()
    if (size, kind) != ("7b", "_qkvb")
    for tag in ("lvd1689m", *TAGS.get((size, kind), ()))
}
