"""Vision transformers that spend their compute on the tokens that matter."""

from evovit_jax.convert import load_weights
from evovit_jax.models import create_model, list_models

__all__ = ["create_model", "list_models", "load_weights"]
