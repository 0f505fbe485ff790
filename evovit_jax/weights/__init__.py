"""PyTorch checkpoints to models here and back; one family of names a file."""

from evovit_jax.weights.families import Family, register
from evovit_jax.weights.load_save import from_torch, load_weights, save_weights, to_torch
from evovit_jax.weights.loaded import Loaded

__all__ = [
    "Family",
    "Loaded",
    "from_torch",
    "load_weights",
    "register",
    "save_weights",
    "to_torch",
]
