"""The training loss: the heads' cross entropies and the reducer's own losses, added up by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from evovit_jax import rules
from evovit_jax.errors import UserError, suggestion
from evovit_jax.models.outputs import Outputs
from evovit_jax.reduction.base import Reducer

Terms = dict[str, Float[Array, ""]]
# The heads of networks; logits by other names are the reducer's.
HEADS = ("", "cls", "dist", "cls_dist")


def targets_of(labels: Int[Array, " b"], classes: int, smoothing: float) -> Float[Array, "b k"]:
    """Soft targets: `1 - smoothing` on the label, `smoothing` spread over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels, classes, dtype=jnp.float32), smoothing)


def sigmoid_loss(logits: Float[Array, "b k"], targets: Float[Array, "b k"]) -> Float[Array, " b"]:
    """Binary cross entropy of each example, the mean over classes.

    Mixed targets are not thresholded; DeiT-III (Section 3) does, with a smoothing of 0:
    every class of a mixed image is then present.
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


CRITERIA: dict[str, Callable[[Array, Array], Array]] = {
    "softmax": optax.softmax_cross_entropy,
    "sigmoid": sigmoid_loss,
}


def criterion(name: str) -> Callable[[Array, Array], Array]:
    """The loss of each example by name.

    Raises:
      UserError: for an unknown name.
    """
    if name not in CRITERIA:
        raise UserError(f"unknown loss.name {name!r}; {suggestion(name, list(CRITERIA))}")
    return CRITERIA[name]


def training_loss(
    config: ConfigDict,
    logits: Float[Array, "b k"],
    out: Outputs,
    targets: Float[Array, "b k"],
    taught: Float[Array, ""] | None = None,
    others: Terms | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """The loss of a batch and its terms, before weighting, by name.

    `(1 - w) * L(logits) + w * L(cls)` where the model has an auxiliary class-token head (w is
    `loss.cls_weight`; Evo-ViT, Section 3.4), of which the loss against a teacher, `taught`, takes
    its share `distill.alpha`; plus the losses of the reducer's own logits on the labels and its
    other losses, with `others` that it has against a teacher, by `loss.reducer_weights`.
    Distillation heads without a teacher learn the labels: they are averaged with the heads beside
    them, as in inference.
    """
    loss_of = criterion(config.loss.name)
    heads = {"": logits, **out.aux_logits}
    if taught is None:
        for head, distilled in (("", "dist"), ("cls", "cls_dist")):
            if distilled in heads:
                heads[head] = (heads[head] + heads[distilled]) / 2
    total = loss_of(heads[""], targets).mean()
    terms = {}
    if "cls" in heads and config.loss.cls_weight:
        on_class = loss_of(heads["cls"], targets).mean()
        total = (1 - config.loss.cls_weight) * total + config.loss.cls_weight * on_class
        terms["loss_cls"] = on_class
    if taught is not None:
        total = (1 - config.distill.alpha) * total + config.distill.alpha * taught
        terms["loss_distill"] = taught
    labelled = {name: loss_of(heads[name], targets).mean() for name in heads if name not in HEADS}
    own = {**labelled, **out.losses, **(others or {})}
    weights = rules.numbers(config.loss.reducer_weights, own, field="loss.reducer_weights")
    for name, value in own.items():
        total = total + weights[name] * value
        terms[f"loss_{name}"] = value
    return total, {"loss": total, **terms}


def names(config: ConfigDict, model: nnx.Module) -> tuple[str, ...]:
    """Names of the loss's terms, parts before the total: what a NaN guard should look at first.

    Args:
      config: the run's.
      model: its network, with or without values.
    """
    reducer = getattr(model, "reducer", Reducer)
    own = list(reducer.loss_names)
    if config.distill.kind == "self":
        own += reducer.teacher_loss_names
    elif config.distill.kind != "none":
        own.append("distill")
    if hasattr(model, "head_cls") and config.loss.cls_weight:
        own.append("cls")
    return (*sorted(f"loss_{name}" for name in own), "loss")


def label_free_loss(
    settings: ConfigDict,
    logits: Float[Array, "b k"],
    out: Outputs,
    taught: Float[Array, "b k"],
) -> Float[Array, ""]:
    """The loss of the kinds "soft", "hard" and "cls" against the teacher's logits.

    Args:
      settings: the run's `config.distill`.
      logits: of the student's training pass.
      out: what else it returned.
      taught: the teacher's logits.

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
    student, teacher = (jax.nn.log_softmax(x / tau, axis=-1) for x in (logits, taught))
    return tau**2 * optax.losses.kl_divergence_with_log_targets(student, teacher).mean()


def hard_loss(logits: Float[Array, "b k"], taught: Float[Array, "b k"]) -> Float[Array, ""]:
    """Cross entropy with the class that the teacher finds most likely, the mean over images."""
    labels = taught.argmax(axis=-1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
