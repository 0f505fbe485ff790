"""The tables of SigLIP (Zhai et al., 2023) and SigLIP 2 (Tschannen et al., 2025).

No class token; an attention pool makes the features. The `gap` models are the same without it:
their features are the mean of the tokens. The tag `webli` is SigLIP, `v2_webli` SigLIP 2.

Tested in tests/models/encoder_table_test.py.
"""

from evovit_jax.models.encoder import Encoder
from evovit_jax.models.registry import INCEPTION, Entry, at_crop

SIZES = {
    "base_patch16": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "base_patch32": {"embed_dim": 768, "depth": 12, "num_heads": 12, "patch_size": 32},
    "large_patch16": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "so400m_patch14": {
        "embed_dim": 1152,
        "depth": 27,
        "num_heads": 16,
        "mlp_ratio": 3.7362,
        "patch_size": 14,
    },
    "so400m_patch16": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362},
    "giantopt_patch16": {
        "embed_dim": 1536,
        "depth": 40,
        "num_heads": 16,
        "activation": "gelu_tanh",
    },
}
SHARED = {"class_token": False, "class_position": False, "num_classes": 0}
KINDS = {"": {"pool": "map"}, "gap_": {"pool": "avg", "fc_norm": False}}
BOTH, SECOND = ("v2_webli", "webli"), ("v2_webli",)
# The tags of the weights, by size of the network and of the images.
TAGS = {
    ("base_patch16", 224): BOTH,
    ("base_patch16", 256): (*BOTH, "webli_i18n"),
    ("base_patch16", 384): BOTH,
    ("base_patch16", 512): BOTH,
    ("base_patch32", 256): SECOND,
    ("large_patch16", 256): BOTH,
    ("large_patch16", 384): BOTH,
    ("large_patch16", 512): SECOND,
    ("so400m_patch14", 224): BOTH,
    ("so400m_patch14", 378): BOTH,
    ("so400m_patch16", 256): (*SECOND, "webli_i18n"),
    ("so400m_patch16", 384): SECOND,
    ("so400m_patch16", 512): SECOND,
    ("giantopt_patch16", 256): SECOND,
    ("giantopt_patch16", 384): SECOND,
}
# timm's crop fraction is 0.9 but here.
WHOLE = "vit_so400m_patch14_siglip_gap_378.webli"


def _entry(name: str, settings: dict) -> Entry:
    crop = 1.0 if name == WHOLE else 0.9
    transform = at_crop(settings["image_size"], crop, *INCEPTION)
    return Entry(Encoder, SHARED | settings, transform=transform, weights=f"hf://timm/{name}")


MODELS = {
    name: _entry(name, SIZES[size] | settings | {"image_size": image_size})
    for (size, image_size), tags in TAGS.items()
    for kind, settings in KINDS.items()
    for tag in tags
    for name in (f"vit_{size}_siglip_{kind}{image_size}.{tag}",)
}
