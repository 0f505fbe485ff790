"""Models of other libraries, with a reduction inside; small adapters say where their blocks are."""

from evovit_jax.adapters.acceleration import accelerate, register_adapter
from evovit_jax.adapters.adapter import Adapter
from evovit_jax.adapters.attention import attend_heads
from evovit_jax.adapters.tower import with_token_maps

__all__ = ["Adapter", "accelerate", "attend_heads", "register_adapter", "with_token_maps"]
