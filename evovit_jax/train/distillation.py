"""Learning from a frozen teacher: its forward pass in the training step, and what is made of it.

`distill.kind` says what is learned, with t the teacher's logits and `a = distill.alpha`:

- "soft" (Hinton et al., 2015; DeiT, equation 2): `(1 - a) * L + a * tau^2 * KL(t / tau, x / tau)`,
  the mean over images. (DeiT's code also divides the divergence by the number of classes.)
- "hard" (DeiT, equation 3; LeViT): `(1 - a) * L + a * CE(x, argmax t)`.
- "cls" (Evo-LeViT's code): hard, on its two distilled heads: `a * mean(CE(x, argmax t),
  CE(c, argmax t))`, as L is the mean of the two others' losses.
- "self" (DynamicViT, Section 3.4): the losses that the reducer has against the network without
  reduction, weighted by `loss.reducer_weights`.

L is the loss on the labels; x the logits of the distillation head where the model has one, else the
model's; c those of the class token's distillation head. The teacher sees the student's images,
mixed and erased as they are, in its own normalisation. It is no part of the state: the optimiser,
the averages and the checkpoints do not know it.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from evovit_jax import reduction
from evovit_jax.config.fields import RANDOM
from evovit_jax.errors import UserError, suggestion
from evovit_jax.models import Outputs, create_model, model_entry
from evovit_jax.models.variables import Skeleton, Variables
from evovit_jax.train import initial_weights, losses
from evovit_jax.weights.files import find_folder
from evovit_jax.workdir.config_file import read_run

KINDS = ("none", "soft", "hard", "cls", "self")

TeacherValues = tuple[Variables, Variables]


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network and what is learned from it; its variables are given to each call.

    Attributes:
      settings: the run's `config.distill`.
      create: makes the network with random values.
      weights: where its values are; `RANDOM` for those that `create` makes.
      skeleton: the network without its variables.
      like: shapes and dtypes of its variables.
      factor: of each channel, from the student's normalised pixels to the teacher's.
      shift: likewise, added after the factor.
    """

    settings: ConfigDict
    create: Callable[[], nnx.Module]
    weights: str
    skeleton: Skeleton
    like: TeacherValues
    factor: tuple[float, ...]
    shift: tuple[float, ...]

    @classmethod
    def of(cls, config: ConfigDict) -> "Teacher | None":
        """The teacher of a run, None where it has none; the number of classes is filled in.

        Raises:
          UserError: settings that cannot be used, or a model that cannot be made.
        """
        check(config)
        if config.distill.kind == "none":
            return None
        weights = _weights(config)
        if config.distill.kind == "self":
            fields = {k: v for k, v in config.model.items() if k != "name" and v is not None}
            create = functools.partial(create_model, config.model.name, "none", **fields)
            mean, std = config.mean, config.std
        else:
            name, fields = reduction.parse(config.distill.teacher)
            fields = {k: config.model[k] for k in ("image_size", "num_classes")} | fields
            create = functools.partial(create_model, name, **fields)
            mean, std = _normalisation(name, weights)
        network = nnx.eval_shape(create)
        return cls(
            settings=config.distill,
            create=create,
            weights=weights,
            skeleton=Skeleton(network),
            like=Skeleton.variables(network),
            factor=tuple(float(s / t) for s, t in zip(config.std, std, strict=True)),
            shift=tuple(float((a - b) / t) for a, b, t in zip(config.mean, mean, std, strict=True)),
        )

    def load(self) -> TeacherValues:
        """The teacher's variables, from its weights.

        Raises:
          UserError: they are not there, or do not fit.
        """
        network = self.create()
        if self.weights == RANDOM:
            return Skeleton.variables(network)
        return initial_weights.load(network, self.weights, teaches=True)

    def look(
        self, values: TeacherValues, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b k"], Outputs]:
        """What the teacher says of images that are normalised for the student; no gradient."""
        factor, shift = (
            jnp.asarray(channels, jnp.float32)[None, None, None]
            for channels in (self.factor, self.shift)
        )
        return jax.lax.stop_gradient(self.skeleton.build(*values)(images * factor + shift))

    def losses(
        self,
        values: TeacherValues,
        images: Float[Array, "b h w c"],
        student: nnx.Module,
        logits: Float[Array, "b k"],
        out: Outputs,
    ) -> tuple[Float[Array, ""] | None, losses.Terms]:
        """The loss that takes `alpha` of the labels' (None where none does), and losses beside it.

        Args:
          values: the teacher's.
          images: as the student saw them.
          student: whose reducer has the losses of kind "self".
          logits: of the student's training pass.
          out: what else it returned.

        Raises:
          UserError: the student has not got the heads that the kind is for.
        """
        taught, teacher_out = self.look(values, images)
        if self.settings.kind == "self":
            return None, student.reducer.teacher_losses(logits, out, taught, teacher_out)
        return losses.label_free_loss(self.settings, logits, out, taught), {}


def check(config: ConfigDict) -> None:
    """Refuses settings of `config.distill` that no run can use.

    Raises:
      UserError: naming the field.
    """
    c = config.distill
    if c.kind not in KINDS:
        raise UserError(f"unknown distill.kind {c.kind!r}; {suggestion(c.kind, KINDS)}")
    if not 0 <= c.alpha <= 1:
        raise UserError(f"distill.alpha={c.alpha} is outside [0, 1]")
    if c.tau <= 0:
        raise UserError(f"distill.tau={c.tau} must be above 0")
    if c.kind == "none":
        return
    if c.kind == "self":
        method = reduction.parse(config.reduction or model_entry(config.model.name).reduction)[0]
        if not reduction.reducer_class(method).teacher_loss_names:
            raise UserError(f"distill.kind='self': reduction {method!r} has no losses of its own")
        if c.teacher:
            raise UserError("distill.kind='self' teaches by the model itself: leave teacher empty")
    elif not c.teacher:
        raise UserError(
            f"distill.kind={c.kind!r} needs distill.teacher, a model such as regnety_160"
        )
    if not _weights(config):
        raise UserError(
            "distill.teacher_weights is empty: give the teacher's weights "
            f"({RANDOM!r}: an untrained one, to try things out)"
        )


def _weights(config: ConfigDict) -> str:
    own = config.distill.teacher_weights
    return own or (config.init_weights if config.distill.kind == "self" else "")


def _normalisation(name: str, weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of a teacher's pixels in 0..1: its own, or those of the run that it is from."""
    run = read_run(find_folder(weights))
    if run:
        return run["mean"], run["std"]
    transform = model_entry(name).transform
    return transform.mean, transform.std
