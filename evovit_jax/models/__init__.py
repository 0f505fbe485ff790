"""Backbones, one a file, and the registry that names them."""

from evovit_jax.models.outputs import Outputs
from evovit_jax.models.registry import (
    Entry,
    EvalTransform,
    abstract_model,
    create_model,
    list_models,
    model_entry,
    register,
)

__all__ = [
    "Entry",
    "EvalTransform",
    "Outputs",
    "abstract_model",
    "create_model",
    "list_models",
    "model_entry",
    "register",
]
