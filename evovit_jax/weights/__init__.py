"""PyTorch checkpoints to models here and back; one family of names a file."""

from evovit_jax.weights.load_save import from_torch, load_weights, save_weights, to_torch

__all__ = ["from_torch", "load_weights", "save_weights", "to_torch"]
