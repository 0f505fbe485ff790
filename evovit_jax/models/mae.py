"""The table of masked autoencoders' encoders (He et al., 2021), as pretrained.

Fine-tuned they classify the mean of the patches, `pool="avg"`, with a norm after it, none before.

Tested in tests/models/encoder_table_test.py.
"""

from evovit_jax.models.encoder import Encoder
from evovit_jax.models.registry import Entry, EvalTransform

SIZES = {
    "base_patch16": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large_patch16": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge_patch14": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
}

MODELS = {
    f"vit_{size}_224.mae": Entry(
        Encoder,
        sizes | {"num_classes": 0},
        transform=EvalTransform(resize=248),
        weights=f"hf://timm/vit_{size}_224.mae",
    )
    for size, sizes in SIZES.items()
}
