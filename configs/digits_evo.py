"""Evo-ViT on the embedded digits."""

from evovit_jax import config as config_lib


def get_config(variant: str = ""):
    c = config_lib.get_config()
    c.model.name = "evo_deit_tiny_patch16_224"
    return config_lib.finish(c, variant)
