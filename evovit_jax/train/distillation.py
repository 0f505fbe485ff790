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
from evovit_jax.train import initial_weights
from evovit_jax.weights.files import find_folder
from evovit_jax.workdir.config_file import read_run

KINDS = ("none", "soft", "hard", "cls", "self")

TeacherValues = tuple[Variables, Variables]
Terms = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network and what is learned from it; its variables are given to each call.

    Attributes:
      settings: the run's `config.distill`.
      skeleton: the network without its variables.
      factor: of each channel, from the student's normalised pixels to the teacher's.
      shift: likewise, added after the factor.
    """

    settings: ConfigDict
    skeleton: Skeleton
    factor: tuple[float, ...]
    shift: tuple[float, ...]

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
    ) -> tuple[Float[Array, ""] | None, Terms]:
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
        return label_free_loss(self.settings, logits, out, taught), {}


def label_free_loss(
    settings: ConfigDict,
    logits: Float[Array, "b k"],
    out: Outputs,
    taught: Float[Array, "b k"],
) -> Float[Array, ""]:
    """The loss of the kinds "soft", "hard" and "cls" against the teacher's logits.

    Raises:
      UserError: the student has not got the heads that the kind is for.
    """
    heads = [out.aux_logits.get("dist", logits)]
    if settings.kind == "soft":
        return soft_loss(heads[0], taught, settings.tau)
    if settings.kind == "cls":
        if not {"dist", "cls_dist"} <= set(out.aux_logits):
            raise UserError(
                "distill.kind='cls' is for a model with distillation heads on the patches and "
                "on the class token (Evo-LeViT); use 'hard'"
            )
        heads.append(out.aux_logits["cls_dist"])
    return sum(hard_loss(head, taught) for head in heads) / len(heads)


def soft_loss(
    logits: Float[Array, "b k"], taught: Float[Array, "b k"], tau: float
) -> Float[Array, ""]:
    """`tau^2 * KL(softmax(taught / tau) || softmax(logits / tau))`, the mean over images."""
    wanted = jax.nn.log_softmax(taught / tau, axis=-1)
    found = jax.nn.log_softmax(logits / tau, axis=-1)
    return tau**2 * (jnp.exp(wanted) * (wanted - found)).sum(axis=-1).mean()


def hard_loss(logits: Float[Array, "b k"], taught: Float[Array, "b k"]) -> Float[Array, ""]:
    """Cross entropy with the class that the teacher finds most likely, the mean over images."""
    labels = jax.nn.one_hot(taught.argmax(axis=-1), taught.shape[-1], dtype=jnp.float32)
    return -(labels * jax.nn.log_softmax(logits, axis=-1)).sum(axis=-1).mean()


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
        if not reduction.reducer_class(method).learns_from_teacher:
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


def make_teacher(config: ConfigDict) -> Teacher | None:
    """The teacher of a run, None where it has none; `config.model.num_classes` is filled in.

    Raises:
      UserError: settings that cannot be used, or a model that cannot be made.
    """
    check(config)
    if config.distill.kind == "none":
        return None
    skeleton = Skeleton(nnx.eval_shape(lambda: _create(config)))
    mean, std = _normalisation(config)
    factor = tuple(float(s / t) for s, t in zip(config.std, std, strict=True))
    shift = tuple(float((a - b) / t) for a, b, t in zip(config.mean, mean, std, strict=True))
    return Teacher(config.distill, skeleton, factor, shift)


def abstract_values(config: ConfigDict) -> TeacherValues:
    """Shapes and dtypes of `load_values`."""
    return Skeleton.variables(nnx.eval_shape(lambda: _create(config)))


def load_values(config: ConfigDict) -> TeacherValues:
    """The teacher's variables, from its weights.

    Raises:
      UserError: they are not there, or do not fit.
    """
    model, weights = _create(config), _weights(config)
    if weights == RANDOM:
        return Skeleton.variables(model)
    return initial_weights.load(model, weights, teaches=True)


def _create(config: ConfigDict) -> nnx.Module:
    """The teacher with random values; like the student in image size and number of classes."""
    if config.distill.kind == "self":
        given = {k: v for k, v in config.model.items() if k != "name" and v is not None}
        return create_model(config.model.name, "none", **given)
    name, fields = reduction.parse(config.distill.teacher)
    like_student = {k: config.model[k] for k in ("image_size", "num_classes")}
    return create_model(name, **{**like_student, **fields})


def _weights(config: ConfigDict) -> str:
    own = config.distill.teacher_weights
    return own or (config.init_weights if config.distill.kind == "self" else "")


def _normalisation(config: ConfigDict) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the teacher's pixels in 0..1: its own, or those of the run that it is from."""
    if config.distill.kind == "self":
        return config.mean, config.std
    run = read_run(find_folder(_weights(config)))
    if run:
        return run["mean"], run["std"]
    transform = model_entry(reduction.parse(config.distill.teacher)[0]).transform
    return transform.mean, transform.std
