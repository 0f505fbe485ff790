"""Images a second that the data pipeline makes, beside tf.data and PyTorch's DataLoader.

What `python -m evovit_jax.benchmark --mode=data` runs. All pipelines read the same JPEG files and
are measured in turns, a few seconds each, so that whatever else the machine does hits all of them.
"""

import contextlib
import importlib.util
import json
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from evovit_jax import tables
from evovit_jax.benchmarking import child_process
from evovit_jax.data import workers
from evovit_jax.data.source import Source, open_source
from evovit_jax.errors import UserError, suggestion

# Extra of this package -> its framework and the recipes that it can be measured with.
PEERS = {
    "tf": ("tf.data", ("crop",)),
    "torch": ("torch DataLoader + timm", ("crop", "full", "full_uint8")),
}
MODULES = {"tf": ("tensorflow",), "torch": ("torch", "timm")}
# crop: decode, random resized crop, flip; full: RandAugment (and erasing, normalisation) as well.
OWN = ("evovit_jax", ("crop", "full"))
COLUMNS = {
    "framework": ("framework", "{}"),
    "recipe": ("recipe", "{}"),
    "images_per_second": ("images/s", "{:.0f}"),
    "images_per_second_per_core": ("a core", "{:.0f}"),
    "images_per_cpu_second": ("a CPU second", "{:.0f}"),
    "spread": ("spread", "{:.0%}"),
    "ratio": ("evovit_jax over it", "{:.2f}"),
    "cpu_ratio": ("by CPU time", "{:.2f}"),
}
# Seconds in which a pipeline that was measured may fill its buffers again before the next one is.
SETTLE = 1.5
# Of a TFDS data set so many images are written out as files, which every pipeline can read.
SAMPLE = 1000


def run(
    data: str,
    *,
    peers: Sequence[str] = (),
    batch_size: int = 64,
    image_size: int = 224,
    cores: int = 0,
    rounds: int = 5,
    seconds: float = 4.0,
    data_dir: str = "",
) -> list[dict[str, Any]]:
    """Measures the pipelines in turns.

    Args:
        data: `folder:PATH` or `tfds:NAME[:SPLIT]` of JPEG images; looped.
        peers: "tf" and "torch", to measure these beside.
        batch_size: images a batch.
        image_size: pixels, height and width.
        cores: threads or worker processes of each; 0 = the cores that this process may use.
        rounds: measurements of each, interleaved.
        seconds: of one measurement.
        data_dir: where TFDS data sets lie.

    Returns:
        One row for each framework and recipe: `framework`, `mode` ("data"), `recipe`,
        `batch_size`, `image_size`, `cores`, `images_per_second` (the median),
        `images_per_second_per_core`, `images_per_cpu_second` (which other work on the machine
        hardly changes), `spread` (largest less smallest, over the median), `ratio` and `cpu_ratio`
        (of this library to the framework, for the same recipe, the medians over the rounds).

    Raises:
        UserError: an unknown peer, or one that is not installed; data without JPEG files.
    """
    for peer in peers:
        if peer not in PEERS:
            raise UserError(f"unknown peer {peer!r}: {suggestion(peer, tuple(PEERS))}")
        if missing := [m for m in MODULES[peer] if importlib.util.find_spec(m) is None]:
            raise UserError(
                f"peer {peer!r} needs {' and '.join(missing)}: pip install 'evovit_jax[{peer}]'"
            )
    cores = cores or workers.cores()
    runners = [OWN, *(PEERS[peer] for peer in peers)]
    with contextlib.ExitStack() as stack:
        paths = stack.enter_context(_files(open_source(data, "train", data_dir)))
        common = {"batch_size": batch_size, "image_size": image_size, "cores": cores}
        children = {
            (framework, recipe): stack.enter_context(
                _child({**paths, **common, "framework": framework, "recipe": recipe})
            )
            for framework, recipes in runners
            for recipe in recipes
        }
        rates: Rates = {which: [] for which in children}
        for _ in range(rounds):
            for which, child in children.items():
                rates[which].append(_measure(child, which[0], seconds))
                time.sleep(SETTLE)
    return [_row(which, rates, common) for which in rates]


def report(data: str, **settings: Any) -> tuple[dict[str, Any], str]:
    """What `run` measures in the form of a benchmark's report, and its table."""
    measured = run(data, **settings)
    return {"device": "cpu", "matmul_peak_gflops": None, "rows": measured}, format_table(measured)


# (framework, recipe) -> (images a second, images a CPU second) of each round.
Rates = dict[tuple[str, str], list[tuple[float, float]]]


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    cells = [[form.format(row[key]) for key, (_, form) in COLUMNS.items()] for row in rows]
    return tables.markdown([title for title, _ in COLUMNS.values()], cells)


def _row(which: tuple[str, str], rates: Rates, common: dict[str, Any]) -> dict[str, Any]:
    framework, recipe = which
    own = rates[OWN[0], recipe.removesuffix("_uint8")]
    wall = [rate for rate, _ in rates[which]]
    median = statistics.median(wall)
    ratios = [
        [ours / theirs for ours, theirs in zip(a, b, strict=True)]
        for a, b in zip(own, rates[which], strict=True)
    ]
    return {
        "framework": framework,
        "mode": "data",
        "recipe": recipe,
        **common,
        "images_per_second": median,
        "images_per_second_per_core": median / common["cores"],
        "images_per_cpu_second": statistics.median(rate for _, rate in rates[which]),
        "spread": (max(wall) - min(wall)) / median,
        "ratio": statistics.median(by_wall for by_wall, _ in ratios),
        "cpu_ratio": statistics.median(by_cpu for _, by_cpu in ratios),
    }


@contextlib.contextmanager
def _files(source: Source) -> Iterator[dict[str, Any]]:
    """JPEG files that every pipeline can read: {"data": folder:PATH, "paths": [...]}."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for index in range(min(len(source), SAMPLE)):
            stored = source[index]["image"]
            if isinstance(stored, bytes) and stored[:2] == b"\xff\xd8":
                path = pathlib.Path(folder) / "class" / f"{index:05}.jpg"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(stored)
                paths.append(str(path))
        if not paths:
            raise UserError(f"{source.name} holds no JPEG files, which the benchmark reads")
        yield {"data": f"folder:{folder}", "paths": paths}


@contextlib.contextmanager
def _child(settings: dict[str, Any]) -> Iterator[subprocess.Popen]:
    """A process that holds one pipeline, waiting to be measured."""
    with child_process.start(
        "evovit_jax.benchmarking.pipeline_processes", json.dumps(settings)
    ) as process:
        _answer(process, settings["framework"])
        yield process


def _answer(process: subprocess.Popen, framework: str) -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
        raise UserError(f"the pipeline of {framework} ended without a result; its error is above")
    return json.loads(line)


def _measure(process: subprocess.Popen, framework: str, seconds: float) -> tuple[float, float]:
    """Images a second, and a CPU second."""
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    result = _answer(process, framework)
    return result["images"] / result["seconds"], result["images"] / result["cpu"]
