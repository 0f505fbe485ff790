"""One line of progress for a command of several parts, and what it says meanwhile.

Tested in tests/compare_test.py.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm


class Progress:
    """Counts the steps of the whole; on a terminal it is a bar, elsewhere nothing is shown."""

    def __init__(self):
        self._bar = tqdm(total=0, desc="begin", unit="step", disable=None)

    def plan(self, steps: int) -> None:
        """So many steps more are to come, or fewer than was planned where it is negative."""
        self._bar.total += steps
        self._bar.refresh()

    def step(self, what: str, steps: int = 1) -> None:
        """So many planned steps are done, the next of which are `what`."""
        self._bar.set_description_str(what, refresh=False)
        self._bar.update(steps)

    def through(self, things: Sequence[Any], what: str) -> Iterator[Any]:
        """All of them, each a step."""
        self.plan(len(things))
        for thing in things:
            yield thing
            self.step(what)

    def say(self, line: str) -> None:
        """Prints a line without spoiling the bar, at once."""
        self._bar.write(line)
        sys.stdout.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
