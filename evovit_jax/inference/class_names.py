"""What a model's classes are called."""

from importlib import resources
from typing import Any

from evovit_jax.data.source import known_class_names
from evovit_jax.data.stored_files import expanded, read_regular
from evovit_jax.errors import UserError
from evovit_jax.weights.files import find_folder
from evovit_jax.workdir.class_names import read
from evovit_jax.workdir.config_file import read_run

IMAGENET = "imagenet_classes.txt"


def class_names(count: int, *, file: str | None = None, weights: str | None = None) -> list[str]:
    """The names of a model's classes.

    Args:
      count: how many there are.
      file: with a name a line; None for those of the run's data, or ImageNet's if there are 1,000.
      weights: what the model was loaded from, perhaps a training run.

    Returns:
      Names in the order of the logits; numbers where nobody knows names.

    Raises:
      UserError: there are none, or the file cannot be read or has another number of names.
    """
    if not count:
        raise UserError(
            "this model has no classes, what it returns are features; --classes=FILE.npz compares "
            "them with embeddings of classes, --num_classes=N gives it a head, for weights with one"
        )
    numbers = [f"class {i}" for i in range(count)]
    if file is not None:
        try:
            names = read_regular(expanded(file, "--class_names")).decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read class names {file}: {error}") from None
        if len(names) != count:
            raise UserError(f"class names {file}: {len(names)} lines for {count} classes")
        return names
    folder = find_folder(weights) if weights else None
    run = read_run(folder)
    if run:
        names = read(folder) or _names_at_hand(run)
        return names + numbers[len(names) :] if len(names) <= count else numbers
    if count == 1000:
        return (resources.files("evovit_jax") / IMAGENET).read_text().splitlines()
    return numbers


def _names_at_hand(run: dict[str, Any]) -> list[str]:
    """The names of a run that kept none, from its data; none where that is elsewhere."""
    try:
        return list(known_class_names(run["data"], run.get("data_dir", "")) or ())
    except UserError:
        return []
