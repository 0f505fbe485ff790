"""What a comparison has found out, kept in its output folder for the next run.

A record is found again by its key alone, which has all that it depends on: the file's name is a
hash of the key, so that what was found out about something else is never taken for it.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from evovit_jax.data.stored_files import read_regular
from evovit_jax.errors import first_line
from evovit_jax.weights.files import whole_or_nothing

FOLDER = "records"


class Records:
    """The records in the output folder; none where there is no folder."""

    def __init__(self, output: pathlib.Path | None, say: Callable[[str], None] = print):
        self._folder, self._say = output and output / FOLDER, say

    def read(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was found out under `key`; None where nothing was, or where the file is damaged.

        Damage is said, since what the record had is computed again.
        """
        if self._folder is None or not self._path(key).exists():
            return None
        try:
            record = json.loads(read_regular(self._path(key)))
            if record["key"] != key or record["checksum"] != digest([key, record["value"]]):
                raise ValueError("its checksum is wrong")
            return record["value"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            reason = first_line(error)
            self._say(f"{self._path(key)} is damaged ({reason}): it is computed again")
            return None

    def write(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Keeps what was found out, whole or not at all.

        Raises:
          UserError: the folder cannot be written.
        """
        if self._folder is None:
            return
        record = {"key": key, "value": value, "checksum": digest([key, value])}
        with whole_or_nothing(str(self._path(key))) as path:
            pathlib.Path(path).write_text(json.dumps(record))

    def _path(self, key: Mapping[str, Any]) -> pathlib.Path:
        return self._folder / f"{digest(key)[:20]}.json"


def digest(value: Any) -> str:
    """A hash of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
