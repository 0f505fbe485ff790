"""Files with some of their bytes changed, and limits for who reads them."""

import argparse
import contextlib
import json
import pathlib
import random
import resource
import signal
from collections.abc import Callable, Iterator

EXTREME = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of some bytes: flips, numbers, cuts, copies, insertions."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 2, 4, 8, 16, 100, 1000])
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            size, order = rng.choice([1, 2, 4, 8]), rng.choice(["little", "big"])
            number = rng.choice(EXTREME) % 256**size
            data[at : at + size] = number.to_bytes(size, order)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + length] * rng.choice([1, 1, 2, 1000])
        elif kind == 5:
            data[at:at] = rng.randbytes(length)
        else:
            del data[at:]
    return bytes(data)


class TooLong(BaseException):
    """A file took more than its time; no reader catches it."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends what takes longer."""

    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def bound_memory(space: int) -> None:
    """Lets this process have so many bytes of address space more than it has."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + space
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def reset_peak() -> int:
    """The memory, in MB, that this process has now; `peak_mb` is from now on."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> int:
    """The most memory that this process has had, in MB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def command(run: Callable[[int, int], dict], about: str, *, cases: int, space: int) -> None:
    """Prints what `run(cases, seed)` returns, of the flags, in a process of bounded memory."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=cases)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    bound_memory(space)
    print(json.dumps(run(flags.cases, flags.seed)))
