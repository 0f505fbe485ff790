"""The setting of a method at which a network costs so many multiply-adds, as near as it gets."""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from evovit_jax import flops, reduction
from evovit_jax.benchmarking import identity
from evovit_jax.benchmarking.progress import Progress
from evovit_jax.benchmarking.records import Records
from evovit_jax.errors import UserError
from evovit_jax.hardware.platforms import compiling_for
from evovit_jax.inference import model_flags
from evovit_jax.models.registry import InitKeys
from evovit_jax.reduction.card import NEEDED

# A network that costs more or less than this share of the target is not at the target.
TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Found:
    """The nearest setting of a method.

    Attributes:
      spec: as `--reduction` takes it.
      gmacs: billions of multiply-adds of an image.
      target: what was looked for.
    """

    spec: str
    gmacs: float
    target: float

    @property
    def reached(self) -> bool:
        """Whether it is near enough to stand beside others of that cost."""
        return abs(self.gmacs - self.target) <= TOLERANCE * self.target

    def __str__(self) -> str:
        method, at = self.spec.partition(",")[0], f"{self.target:g} GMACs"
        if self.reached:
            return f"{at}: {self.spec} has {self.gmacs:.4g}"
        return f"{at}: {method} cannot reach it here, its nearest is {self.spec} ({self.gmacs:.4g})"


def parse_targets(text: str) -> tuple[float, ...]:
    """The numbers of `--at_gmacs`.

    Raises:
      UserError: one is no number above 0, or stands there twice.
    """
    try:
        targets = tuple(float(part) for part in text.split(","))
    except ValueError:
        targets = ()
    fine = all(0 < target < float("inf") for target in targets)
    if not targets or not fine or len({*targets}) < len(targets):
        raise UserError(f"--at_gmacs={text}: give numbers above 0 with commas, such as 0.8,1.0")
    return targets


def training_free() -> list[str]:
    """Every method that runs on weights that were trained without it, as `--reduction` takes it."""
    cards = {name: reduction.reducer_class(name).card for name in reduction.list_reductions()}
    return [
        f"{name},{card.untrained}" if card.untrained else name
        for name, card in cards.items()
        if card and card.training != NEEDED and name != "none"
    ]


def study(
    flags: argparse.Namespace,
    specs: Sequence[str],
    targets: Sequence[float],
    folder: pathlib.Path,
    progress: Progress,
) -> tuple[list[str], list[Found]]:
    """The reductions to compare at each of the targets, `none` first, and what was found for them.

    Args:
      flags: of the command, which say the model.
      specs: methods, with settings that are not varied; none for all that need no training.
      targets: billions of multiply-adds an image.
      folder: where settings are kept that were found.
      progress: is told of the search.

    Raises:
      UserError: the model cannot be made, one of `specs` does not run in it or has nothing to vary,
        or no method reaches a target.
    """
    dense = model_flags.prepare_one(flags, "none").model
    wanted = [spec for spec in specs or training_free() if spec != "none"]
    records, found = Records(folder, progress.say), []
    for spec in progress.through(wanted, "find settings"):
        try:
            nearest_ones = [find(dense, spec, target, records) for target in targets]
        except UserError as error:
            if specs:
                raise
            progress.say(f"{spec}: {error}")  # of all methods those that run here
            continue
        for one in nearest_ones:
            progress.say(str(one))
        found += [one for one in nearest_ones if one.reached]
    if not found:
        raise UserError("no method reaches what --at_gmacs asks for")
    # One setting may be the nearest to two targets.
    return [
        "none",
        *dict.fromkeys(one.spec for one in sorted(found, key=lambda f: f.target)),
    ], found


def find(model: nnx.Module, spec: str, target: float, records: Records) -> Found:
    """The nearest setting of one method.

    Raises:
      UserError: the method does not run in this network, or has nothing to vary in it.
    """
    key = {"search": target} | identity.network(model, spec)
    before = records.read(key)
    if before is not None:
        return Found(before["spec"], before["gmacs"], target)
    values, specified = settings(model, spec)
    cost = costs(model, specified)
    value = nearest(values, cost, target)
    records.write(key, {"spec": reduction.describe(specified(value)), "gmacs": cost(value)})
    return Found(reduction.describe(specified(value)), cost(value), target)


def settings(model: nnx.Module, spec: str) -> tuple[Sequence[Any], Callable[[Any], dict[str, Any]]]:
    """The values of a method's knob in a network, cheapest first; and the method with one of them.

    Raises:
      UserError: the method has no knob, none that turns here, or `spec` has it fixed.
    """
    in_pyramid = model.reducer.backbone.is_pyramid
    name, cls, fields = reduction.resolve(spec, in_pyramid=in_pyramid)
    knob = cls.knob
    if knob is None:
        raise UserError(f"reduction {name} has nothing that could be varied without training")
    if knob.field in fields:
        raise UserError(f"reduction {name}: leave {knob.field} out, --at_gmacs finds it")
    values = knob.values(model.reducer.backbone)
    if not values:
        raise UserError(f"reduction {name} has no values of {knob.field} for this network")
    return values, lambda value: {"name": name, **fields, knob.field: value}


def costs(model: nnx.Module, specified: Callable[[Any], dict[str, Any]]) -> Callable[[Any], float]:
    """Billions of multiply-adds of the network with a value of the knob, each counted once."""
    known: dict[Any, float] = {}

    def cost(value: Any) -> float:
        if value not in known:
            # What a TPU computes in another way is not traced beside it.
            with compiling_for("cpu"):
                made = nnx.eval_shape(
                    lambda: type(model)(model.config, specified(value), rngs=InitKeys(0))
                )
                known[value] = flops.gmacs(made)
        return known[value]

    return cost


def nearest(values: Sequence[Any], cost: Callable[[Any], float], target: float) -> Any:
    """The value whose cost is nearest to the target, the cheaper of two; costs rise on the whole.

    By interpolation and halving in turns: counting the multiply-adds of a network takes a second.
    Since counts of tokens are rounded, a neighbour may cost more than the next one: two on either
    side are looked at.
    """
    low, high = 0, len(values) - 1
    halve = False
    while high - low > 1 and cost(values[low]) < target < cost(values[high]):
        share = (target - cost(values[low])) / (cost(values[high]) - cost(values[low]))
        between = low + (0.5 if halve else share) * (high - low)
        middle = min(max(round(between), low + 1), high - 1)
        low, high = (middle, high) if cost(values[middle]) <= target else (low, middle)
        halve = not halve
    near = {i + step for i in (low, high) for step in range(-2, 3)}
    around = [values[i] for i in sorted(near) if 0 <= i < len(values)]
    return min(around, key=lambda value: abs(cost(value) - target))
