"""A long training of the digits: does anything grow, is anything compiled again?

    python experiments/long_run.py --minutes=60 --every=200 --workdir=DIR

Trains as `evovit_jax.main` does, with an evaluation and a checkpoint every so many steps, and notes
every minute the process's memory, how much of the C heap is in use and how much of it is free,
handles and threads, and how many programs JAX has compiled. The run ends by SIGTERM after
`--minutes`. Prints a table in Markdown; the numbers of every minute are in DIR/long_run.jsonl.
"""

import argparse
import ctypes
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.hardware import cpu
from evovit_jax.train import loop
from evovit_jax.workdir import metrics

RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "digits_evo.py"
COMPILED = "/jax/core/compile/backend_compile_duration"
Sample = dict[str, float]
COLUMNS = {
    "minutes": "minutes",
    "step": "step",
    "memory": "memory, MiB",
    "in_use": "heap in use",
    "free": "heap free",
    "handles": "handles",
    "threads": "threads",
    "compilations": "programs compiled",
}
# Of glibc's malloc.h.
HEAP_FIELDS = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
    "keepcost",
)  # fmt: skip


class Compilations:
    """Counts the programs that JAX compiles, or takes from its cache of compiled programs."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, seconds: float, **_: str | int) -> None:
        del seconds
        self.count += event == COMPILED


class HeapInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns: `uordblks` bytes are in use, `fordblks` free."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in HEAP_FIELDS)


def heap() -> HeapInfo:
    """The C heap of this process (glibc)."""
    function = ctypes.CDLL(None).mallinfo2
    function.restype = HeapInfo
    return function()


def recipe(every: int = 200) -> ConfigDict:
    """The digits with an evaluation and a checkpoint every so many steps, without an end."""
    config = config_lib.load(str(RECIPE))
    config.update(total_epochs=None, total_steps=10_000_000, log_steps=100)
    config.update(checkpoint_epochs=None, checkpoint_steps=every, eval_epochs=None)
    config.eval_steps = every
    config.layer_to_stage_steps = 2 * every  # the reduction's second program is compiled early
    return config


def resources() -> Sample:
    """What this process holds now: memory in MiB, handles, threads (Linux)."""
    held = heap()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "in_use": held.uordblks / 2**20,
        "free": held.fordblks / 2**20,
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
    }


def newest_step(workdir: pathlib.Path) -> int:
    """The step of the last line of a run's metrics, 0 before there is one."""
    path = workdir / metrics.FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def watched(
    config: ConfigDict, workdir: pathlib.Path, seconds: float, pause: float
) -> list[Sample]:
    """Trains for so many seconds; what the process held every `pause` seconds."""
    compilations, samples, ended = Compilations(), [], threading.Event()
    workdir.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def watch(note: Callable[[str], object]) -> None:
        while not ended.wait(pause):
            passed = time.monotonic() - start
            sample = {"minutes": passed / 60, "step": newest_step(workdir), **resources()}
            samples.append(sample | {"compilations": compilations.count})
            note(json.dumps(samples[-1]) + "\n")
            if passed > seconds:
                os.kill(os.getpid(), signal.SIGTERM)  # the run saves and ends
                return

    with (workdir / "long_run.jsonl").open("w", buffering=1) as file:
        watcher = threading.Thread(target=watch, args=(file.write,), daemon=True)
        watcher.start()
        try:
            loop.train_and_evaluate(config, workdir)
        finally:
            ended.set()
            watcher.join()
    return samples


def table(samples: list[Sample], rows: int = 12) -> str:
    """Some of the samples, evenly spaced, in Markdown."""
    picked = sorted({round(i * (len(samples) - 1) / (rows - 1)) for i in range(rows)})
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    for sample in (samples[i] for i in picked):
        lines.append("| " + " | ".join(f"{sample[name]:.0f}" for name in COLUMNS) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=int, default=200, help="steps between two saves")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    flags = parser.parse_args()
    cpu.keep_memory()
    samples = watched(recipe(flags.every), flags.workdir, flags.minutes * 60, pause=60)
    print(table(samples))


if __name__ == "__main__":
    main()
