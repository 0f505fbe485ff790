"""The attention of other libraries' blocks, under what a reducer asks of it.

Tested in tests/adapters/acceleration_test.py.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.adapters.parts import with_parts
from evovit_jax.errors import UserError
from evovit_jax.models.attention import attend, attention_weights
from evovit_jax.models.rotary import Rotation, turned
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet


@runtime_checkable
class Attend(Protocol):
    """Calls an attention module under a request."""

    def __call__(
        self,
        attention: Any,
        request: AttentionRequest,
        tokens: TokenSet,
        x: Float[Array, "b n d"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Array, "b n d"], AttentionView]:
        """What the module returns, and the view that was asked for.

        Args:
          attention: the module, of whatever class.
          request: what the reducer wants.
          tokens: the set whose normalised tokens are `x`.
          x: what the block calls the module with.
          *args: what else it is called with.
          **kwargs: likewise.
        """
        ...


def attend_heads(
    q: Float[Array, "b n h c"],
    k: Float[Array, "b m h c"],
    v: Float[Array, "b m h e"],
    request: AttentionRequest,
    rotation: Rotation | None = None,
) -> tuple[Float[Array, "b n h e"], AttentionView]:
    """`softmax(q k^T / sqrt(c)) v` under a request: for an attention that computes its own q, k, v.

    Queries and keys are turned by `rotation`. The caller has seen to `request.edit`, and adds
    `inputs` to the view where they are asked for.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    raw = k if "raw_keys" in request.needs else None
    q, k = turned(q, rotation), turned(k, rotation)
    scale = q.shape[-1] ** -0.5
    if request.look_ahead is not None:
        mixed, view = v, AttentionView(weights=attention_weights(q, k, scale, request))
    elif request.weights is not None:
        mixed, view = request.weights.astype(v.dtype) @ v, AttentionView()
    else:
        mixed, view = attend(q, k, v, scale=scale, request=request)
    return jnp.swapaxes(mixed, 1, 2), dataclasses.replace(view, raw_keys=raw)


def flax_attention(
    attention: nnx.MultiHeadAttention,
    request: AttentionRequest,
    tokens: TokenSet,
    x: Float[Array, "b n d"],
    *args: Any,
    rotation: Rotation | None = None,
    **kwargs: Any,
) -> tuple[Float[Array, "b n d"], AttentionView]:
    """Flax's own multi-head self-attention, its queries and keys turned by `rotation`.

    Raises:
      UserError: if it has a mask, or keys of other tokens than its queries.
    """
    del tokens
    edited = x if request.edit is None else request.edit(x)
    args = tuple(edited if value is x else value for value in args)
    kwargs = {name: edited if value is x else value for name, value in kwargs.items()}
    given = [value for value in (*args, *kwargs.values()) if hasattr(value, "shape")]
    if any(value is not edited for value in given):
        raise UserError(
            f"a {type(attention).__name__} is called with a mask or with keys of other tokens; "
            "only self-attention over all tokens of an image can be accelerated"
        )
    mixed, view = call_flax(attention, request, rotation, edited, *args, **kwargs)
    if "inputs" in request.needs:
        view = dataclasses.replace(view, inputs=edited)
    return mixed, view


def call_flax(
    attention: nnx.MultiHeadAttention,
    request: AttentionRequest,
    rotation: Rotation | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Array, AttentionView]:
    """`attention(*args, **kwargs)` under a request, whose `edit` and "inputs" are the caller's.

    Where nothing is asked or turned it is the module's own call; else the module projects, and
    `attend_heads` takes the place of its `attention_fn`.

    Raises:
      UserError: if attention weights would be dropped out.
    """
    asked = (request.bias, request.normalise, request.weights, request.look_ahead, rotation)
    if not request.needs - {"inputs"} and all(part is None for part in asked):
        return attention(*args, **kwargs), AttentionView()
    views = []

    def attention_fn(
        q: Array, k: Array, v: Array, *, dropout_rate: float, deterministic: bool, **unused: Any
    ) -> Array:
        del unused
        if dropout_rate and not deterministic:
            raise UserError(
                f"attention dropout of {dropout_rate} is on, under which tokens cannot be "
                "reduced; call model.eval(), or make the model with a dropout rate of 0"
            )
        mixed, view = attend_heads(q, k, v, request, rotation)
        views.append(view)
        return mixed

    mixed = with_parts(attention, {"attention_fn": attention_fn})(*args, **kwargs)
    return mixed, views[0]


def flax_sizes(attention: nnx.MultiHeadAttention) -> tuple[int, int]:
    """The width of the tokens and the number of heads."""
    return attention.in_features, attention.num_heads
