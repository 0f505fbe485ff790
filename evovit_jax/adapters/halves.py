"""A block of another library, in the two halves between which a reducer may step in.

Tested in tests/adapters/acceleration_test.py.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from evovit_jax.adapters.parts import with_parts
from evovit_jax.errors import UserError
from evovit_jax.models.vit import attention_shift
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet, start_tokens


@dataclasses.dataclass(frozen=True)
class Halves:
    """Calls a block as it is, once for each half.

    The first half is what the block hands to the norm that comes after its attention. The second
    is the block with an attention that adds nothing. So nothing of it need be known but which part
    is the attention; layer scale, dropout and the MLP are its own.

    Attributes:
      block: `x + attention(norm(x))`, then `x + mlp(norm(x))`.
      attention: the name of its attention.
      call: calls the attention under a request, see `attention.Attend`.
      args: what else the block is called with.
      kwargs: likewise.
    """

    block: nnx.Module
    attention: str
    call: Callable[..., tuple[Array, AttentionView]]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def _run(self, x: Array, parts: Mapping[str, Callable]) -> Array:
        return with_parts(self.block, parts)(x, *self.args, **self.kwargs)

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[TokenSet, AttentionView]:
        """The tokens after attention with its residual, and what was asked to be seen of it.

        Raises:
          UserError: if no norm follows the attention.
        """
        del block
        own, views, between = getattr(self.block, self.attention), [], []

        def attention(x: Array, *args: Any, **kwargs: Any) -> Array:
            mixed, view = self.call(own, request, tokens, x, *args, **kwargs)
            views.append(view)
            return mixed

        def recorded(norm: nnx.Module) -> Callable:
            def call(x: Array, *args: Any, **kwargs: Any) -> Array:
                if views:
                    between.append(x)
                return norm(x, *args, **kwargs)

            return call

        norms = {
            name: recorded(part)
            for name, part in vars(self.block).items()
            if isinstance(part, nnx.Module) and "norm" in type(part).__name__.lower()
        }
        self._run(tokens.x, norms | {self.attention: attention})
        if not between:
            raise UserError(
                f"{name_of(self.block)} has no norm between attention and MLP, where tokens are "
                "reduced; it cannot be accelerated"
            )
        view = views[0]
        if request.score == "shift" and "class_row" in request.needs:
            view = dataclasses.replace(view, class_row=attention_shift(tokens.x, between[0]))
        return tokens.replace(x=between[0]), view

    def feed_forward(self, block: int, tokens: TokenSet) -> TokenSet:
        """The tokens after the feed-forward with its residual."""
        del block

        def nothing(x: Array, *args: Any, **kwargs: Any) -> Array:
            del args, kwargs
            return jnp.zeros_like(x)

        return tokens.replace(x=self._run(tokens.x, {self.attention: nothing}))


def name_of(module: nnx.Module) -> str:
    """The full name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def check_halves(halves: Halves, width: int) -> None:
    """Refuses a block that computes something else than its two halves, on random tokens.

    Raises:
      UserError: names the class of the block.
    """
    block = nnx.clone(halves.block)
    block.eval()
    leaves = jax.tree.leaves(nnx.state(block))
    if any(isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) for leaf in leaves):
        return  # shapes without values have nothing to compare
    # What a block cannot be called without: None is what switches it off.
    _, *others = inspect.signature(block).parameters.values()
    needed = [one for one in others if one.default is one.empty]
    args = [None for one in needed if one.kind is one.POSITIONAL_OR_KEYWORD]
    kwargs = {one.name: None for one in needed if one.kind is one.KEYWORD_ONLY}
    halves = dataclasses.replace(halves, block=block, args=args, kwargs=kwargs)
    x = jax.random.normal(jax.random.key(0), (1, 6, width))

    @jax.jit
    def errors(x: Array) -> list[Array]:
        """The largest difference, over what the block adds, asking for nothing and for keys."""
        tokens = start_tokens(x, prefix=0, grid=(2, 3))
        expected = block(x, *args, **kwargs)
        if getattr(expected, "shape", None) != x.shape:
            return [jnp.inf]
        requests = [AttentionRequest(needs=frozenset(needs)) for needs in ((), ("keys",))]
        halfway = [halves.attend(0, tokens, request)[0] for request in requests]
        off = [jnp.abs(halves.feed_forward(0, half).x - expected).max() for half in halfway]
        return [error / jnp.abs(expected - x).max() for error in off]

    # Another order of operations is off by more than the rounding of bfloat16.
    if max(errors(x)) > 0.02:
        raise UserError(
            f"{name_of(halves.block)} computes something else than x + attention(norm(x)), then "
            "x + mlp(norm(x)); it cannot be accelerated"
        )
