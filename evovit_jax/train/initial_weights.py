"""Weights that a run starts from or learns from: what loading adapts is said, or refused.

Tested in tests/train/program_test.py.
"""

import jax
from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.models.variables import Skeleton, Variables
from evovit_jax.weights import load_save


def load(
    model: nnx.Module, path: str, *, allow_missing: bool | str = False, teaches: bool = False
) -> tuple[Variables, Variables]:
    """The parameters and statistics of `model`, changed in place, with the weights at `path`.

    A run's steps are compiled for the network of its config. Weights that make another of it
    (folded batch norm, a reducer's setting) are refused, since the run would not be what
    `evaluate` sees of them.

    Args:
      model: with the fields of the run's config.
      path: as `load_weights` takes it.
      allow_missing: likewise.
      teaches: whether its logits are learned from, so that untrained heads will not do.

    Raises:
      UserError: the weights do not fit, or not as they are.
    """
    loaded = load_save.load(model, path, allow_missing=allow_missing)
    for note in loaded.notes:
        if jax.process_index() == 0:
            print(f"{path}: {note}", flush=True)
    if teaches and loaded.classes:
        raise UserError(
            f"the teacher's weights {path} are for other classes than the data; train the teacher "
            "on this data first, and give that run's work directory"
        )
    if loaded.folded:
        raise UserError(
            f"{path} has batch norms folded into the layers beside them, which a training needs; "
            "give the weights before folding"
        )
    if loaded.settings:
        said = ",".join(f"{name}={str(value).lower()}" for name, value in loaded.settings.items())
        if teaches:
            raise UserError(f"{path} was trained with {said}, which no teacher here is made with")
        raise UserError(
            f"{path} was trained with {said}; add it to the reduction "
            f"(--config.reduction=NAME,...,{said})"
        )
    return Skeleton.variables(model)
