"""What loading weights found and changed, for those who decide by it and those who print it.

tests/weights/state_dict_test.py tests its notes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from evovit_jax.errors import some

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Where a model is not simply what its checkpoint holds.

    Attributes:
      remarks: sentences on how the file's tensors were found.
      folded: whether the model's batch norms were folded, as the checkpoint's are.
      classes: (the checkpoint's, the model's) number of classes where they differ; the model's
        heads keep their initial values then.
      resized: (shape there, shape here) of each tensor that was interpolated, by its name.
      unused: tensors of what the model does not have: a reducer, a text tower, a head.
      missing: variables without a tensor, which kept their values because that was allowed.
      ignored: tensors without a variable, which was allowed.
      untrained: parts that a checkpoint may lack and that keep their initial values.
      settings: of the model's reducer, changed to what the weights were trained with.
      kept: likewise, but as the model was made on purpose: what the weights were trained with.
      integers: tensors of whole numbers for variables that are not.
      nonfinite: tensors with NaN or Inf, which was allowed.
    """

    remarks: tuple[str, ...] = ()
    folded: bool = False
    classes: tuple[int, int] | None = None
    resized: Mapping[str, tuple[Shape, Shape]] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    integers: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What a user should know, a line each."""
        lines = list(self.remarks)
        if self.folded:
            lines.append(
                "its batch norms are folded into the layers beside them; so are the model's"
            )
        if self.classes:
            lines.append(
                f"the checkpoint has {self.classes[0]} classes, the model {self.classes[1]}: "
                "its heads keep their initial values"
            )
        lines += [
            f"{name} interpolated from {there} to {here}"
            for name, (there, here) in self.resized.items()
        ]
        lists = {
            "without use in this model": self.unused,
            "not in the checkpoint, left as they are": self.missing,
            "in the checkpoint, ignored": self.ignored,
            "not in the checkpoint, left at their initial values": self.untrained,
            "set what these weights were trained with": _assignments(self.settings),
            "whole numbers where the model has real ones": self.integers,
            "NaN or Inf in": self.nonfinite,
        }
        lines += [f"{what}: {some(names)}" for what, names in lists.items() if names]
        if self.kept:
            trained = ", ".join(_assignments(self.kept))
            lines.append(
                f"kept as the model was made, though these weights were trained with {trained}"
            )
        return lines


def _assignments(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]
