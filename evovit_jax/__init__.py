"""Vision transformers that spend their compute on the tokens that matter."""

from typing import TYPE_CHECKING, Any

from evovit_jax.errors import UserError
from evovit_jax.models import create_model, list_models
from evovit_jax.reduction.select_tokens import select_tokens
from evovit_jax.weights import load_weights

if TYPE_CHECKING:
    from evovit_jax.adapters import accelerate, with_token_maps

__all__ = [
    "UserError",
    "accelerate",
    "create_model",
    "list_models",
    "load_weights",
    "select_tokens",
    "with_token_maps",
]


def __getattr__(name: str) -> Any:
    """What only those need who have a model of another library."""
    if name not in ("accelerate", "with_token_maps"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from evovit_jax import adapters

    return getattr(adapters, name)
