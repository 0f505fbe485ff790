"""What `--data` and the config's data fields say, taken apart."""

import dataclasses
import re

from evovit_jax.errors import UserError

_VERSION = re.compile(r"\d+\.\d+\.\d+|\d+\.\d+\.\*|\d+\.\*\.\*")


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """`tfds:NAME[/CONFIG][:VERSION][:SPLIT]` or `folder:PATH`.

    Attributes:
        kind: "tfds" or "folder".
        name: TFDS's name of the data set, with configuration and version, or the folder's path.
        split: TFDS's, such as `train[:10%]`; "" where none is given, and of a folder.
    """

    kind: str
    name: str
    split: str = ""

    @classmethod
    def parse(cls, text: str) -> "DataSpec":
        """Takes a specification apart.

        Raises:
            UserError: it is of another form.
        """
        kind, _, rest = text.partition(":")
        if not rest or kind not in ("tfds", "folder"):
            raise UserError(f"data {text!r}: say tfds:NAME, tfds:NAME:SPLIT or folder:PATH")
        if kind == "folder":
            return cls(kind, rest)
        name, _, rest = rest.partition(":")
        version, _, split = rest.partition(":")
        if _VERSION.fullmatch(version):
            return cls(kind, f"{name}:{version}", split)
        return cls(kind, name, rest)
