"""Times several things in turns, so that whatever else the machine does hits all of them."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Hashable, Mapping


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call, a sample a round.

    Attributes:
      seconds: the samples in the order of the rounds; not empty.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median sample, seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The largest sample less the smallest, over the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


# Runs something `repeats` times, waits for it to end, and returns seconds of one call.
Measure = Callable[[int], float]


def measure(call: Callable[[], object]) -> Measure:
    """Times a call that returns when its work is done, after one call that is not counted.

    The first call puts code and weights back into the caches that the others' turns emptied.
    """

    def timed(repeats: int) -> float:
        call()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    return timed


def interleave(
    measures: Mapping[Hashable, Measure], *, rounds: int = 5, seconds: float = 1.0, warmup: int = 2
) -> dict[Hashable, Timing]:
    """Measures everything `rounds` times, in turns.

    Args:
      measures: by name.
      rounds: samples of each.
      seconds: of one sample, about; it is at least one call.
      warmup: calls of each before the first sample.
    """
    repeats = {}
    for name, timed in measures.items():
        for _ in range(max(1, warmup)):
            once = timed(1)
        repeats[name] = max(1, round(seconds / max(once, 1e-9)))
    samples: dict[Hashable, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, timed in measures.items():
            samples[name].append(timed(repeats[name]))
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster `fast` is: the median over the rounds that both ran in."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))
