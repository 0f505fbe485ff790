"""Finds the first tensor that is not finite, at the cost of norms that are computed anyway.

The step looks at its loss terms, then at the gradients, then at the updates. When one is not
finite the state stays as it was, the finding sticks in the meter, and the host, which looks at
every line of metrics and before every checkpoint, stops the run.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.models.variables import Variables

ALL_FINITE = -1


def squared_norms(tensors: Variables) -> Variables:
    """The squared norm of each tensor, float32; not finite where a member is not."""
    return {name: jnp.sum(jnp.square(x.astype(jnp.float32))) for name, x in tensors.items()}


def norm_of(squares: Variables) -> Float[Array, ""]:
    """The global norm, from `squared_norms`."""
    return jnp.sqrt(sum(squares.values(), start=jnp.float32(0)))


def first_bad(scalars: Sequence[Float[Array, ""]]) -> Int[Array, ""]:
    """The position of the first scalar that is not finite, `ALL_FINITE` where all are."""
    bad = ~jnp.isfinite(jnp.stack(scalars))
    return jnp.where(bad.any(), jnp.argmax(bad), ALL_FINITE).astype(jnp.int32)


def select(keep_new: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` where `keep_new`, else `old`; fused into what computes `new`."""
    return jax.tree.map(lambda a, b: jnp.where(keep_new, a, b), new, old)


def names_of(terms: Sequence[str], params: Sequence[str]) -> list[str]:
    """What a position means, when loss terms, gradients and updates are looked at in that order."""
    return [
        *terms,
        *(f"the gradient of {name}" for name in params),
        *(f"the update of {name}" for name in params),
    ]


def stop(name: str, step: int, last_good: int | None) -> None:
    """Ends the run.

    Raises:
      UserError: always; it names the tensor, the step and the checkpoint to go on from.
    """
    kept = "there is no checkpoint" if last_good is None else f"checkpoint {last_good} is good"
    raise UserError(
        f"{name} is not finite at step {step}; {kept}. "
        "Lower optim.learning_rate, set optim.clip_norm, or use another seed"
    )


def check_values(params: Variables, source: str) -> None:
    """Refuses parameters that are not finite before the first step.

    Raises:
      UserError: naming the first bad parameter and where it came from.
    """
    position = int(jax.jit(lambda p: first_bad([*squared_norms(p).values()]))(params))
    if position != ALL_FINITE:
        raise UserError(f"{sorted(params)[position]} of {source} is not finite")
