"""Vision transformers that spend their compute on the tokens that matter."""

from evovit_jax.models import create_model, list_models
from evovit_jax.reduction.select_tokens import select_tokens
from evovit_jax.weights import load_weights

__all__ = ["create_model", "list_models", "load_weights", "select_tokens"]
