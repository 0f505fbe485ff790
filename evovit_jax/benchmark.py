"""Throughput, latency, memory and cost of models, interleaved in one run.

python -m evovit_jax.benchmark --models="A;B+evit,keep_rate=0.7" [--batch_sizes=1,16]
python -m evovit_jax.benchmark --models=A --mode=train --peers=timm --json --output=DIR
python -m evovit_jax.benchmark --mode=data --data=folder:DIR [--peers=tf,torch]

Models and batch sizes take turns, so that whatever else the machine does hits all of them, and so
do the matmuls whose speed is the peak. `speedup` is over the first model at the same batch size,
the median over the rounds.
"""

import argparse
import contextlib
import json
import statistics
from collections.abc import Sequence
from typing import Any

import jax

from evovit_jax import benchmark_report, cases, cpu, flops, output_folder, peak, peers
from evovit_jax.errors import UserError, run_command
from evovit_jax.reduction import describe
from evovit_jax.timing import Timing, interleave, measure, ratio


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m evovit_jax.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", default="", help="NAME or NAME+REDUCTION, semicolons between them")
    add("--batch_sizes", default="1,16", help="images at once, commas between them")
    add("--mode", default="inference", choices=(*cases.MODES, "data"))
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    add("--image_size", type=int, help="pixels; those of each model by default")
    add("--chunk", type=int, help="images computed at once in inference; 0 for the whole batch")
    add("--remat", default="none", help="what a training step recomputes: none, dots or full")
    add("--peers", default="", help="timm; with --mode=data: tf, torch")
    add("--rounds", type=int, default=5, help="samples of each, in turns")
    add("--seconds", type=float, default=2.0, help="of one sample, about")
    add("--data", default="", help="folder:DIR or tfds:NAME, with --mode=data")
    add("--data_dir", default="", help="where TFDS data sets lie")
    add("--output", default="", help="folder for benchmark.json, benchmark.md and benchmark.png")
    add("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def check(flags: argparse.Namespace) -> tuple[list[int], list[str]]:
    """(batch sizes, peers) of the flags.

    Raises:
      UserError: for a value that cannot be used, before anything is compiled.
    """
    try:
        batch_sizes = [int(part) for part in flags.batch_sizes.split(",")]
    except ValueError:
        batch_sizes = []
    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError(
            f"--batch_sizes must be whole numbers of at least 1, got {flags.batch_sizes!r}"
        )
    if flags.rounds < 1 or flags.seconds <= 0 or (flags.chunk or 0) < 0:
        raise UserError("--rounds must be at least 1, --seconds positive, --chunk not negative")
    chosen = [part for part in flags.peers.split(",") if part]
    known = ["tf", "torch"] if flags.mode == "data" else ["timm"]
    for peer in chosen:
        if peer not in known:
            raise UserError(f"--peers={peer} is unknown here; --mode={flags.mode} has {known}")
    if flags.mode == "data" and not flags.data:
        raise UserError("--mode=data needs --data, for example --data=folder:DIR")
    return batch_sizes, chosen


def run(
    models: Sequence[tuple[str, str]],
    *,
    batch_sizes: Sequence[int] = (1, 16),
    mode: str = "inference",
    dtype: str = "float32",
    image_size: int | None = None,
    chunk: int | None = None,
    remat: str = "none",
    timm: bool = False,
    rounds: int = 5,
    seconds: float = 2.0,
) -> dict[str, Any]:
    """Times models.

    Args:
      models: (name, reduction) of each.
      batch_sizes: images at once.
      mode: "inference" or "train".
      dtype: compute dtype.
      image_size: pixels; None for those of each model.
      chunk: images computed at once in inference; 0 for the whole batch, None for the default.
      remat: what a training step recomputes.
      timm: whether to time timm's models of the same names, eager and compiled.
      rounds: samples of each.
      seconds: of one sample, about.

    Returns:
      `device`, `matmul_peak_gflops` (of the fastest of the models' matmuls) and `rows`.
    """
    settings = {"mode": mode, "dtype": dtype, "image_size": image_size}
    own = {"chunk": chunk, "remat": remat}
    made = []
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(peers.start()) if timm else None
        for batch_size in batch_sizes:
            own_cases = [
                cases.make(name, reduction, batch_size=batch_size, **settings, **own)
                for name, reduction in models
            ]
            made += own_cases + (_peer_cases(peer, own_cases) if peer else [])
        rows, best = _measure(made, rounds=rounds, seconds=seconds)
    device = jax.devices()[0]
    return {
        "device": f"{device.device_kind} ({device.platform}, {jax.device_count()} device)",
        "matmul_peak_gflops": best,
        "rows": rows,
    }


def _peer_cases(peer: peers.Peer, made: Sequence[cases.Case]) -> list[cases.Case]:
    """timm's model of each name that is among `made`, eager and compiled; timm has no Evo-ViT."""
    found, seen = [], set()
    for case in made:
        row = {**case.row, "reduction": describe(None)}
        if row["model"] in seen:
            continue
        seen.add(row["model"])
        for variant in peers.VARIANTS:
            wanted = ("model", "batch_size", "mode", "dtype", "image_size")
            request = {key: row[key] for key in wanted}
            answer = peer.make(**request, compiled=variant.endswith("compiled"))
            number = answer["number"]
            if number is None:
                continue
            own = {
                "peak_memory_mb": peer.peak_memory_mb(number),
                "compile_seconds": answer["compile_seconds"],
            }
            # timm is dense; a backward pass costs twice its forward pass.
            gmacs = flops.gmacs(row["model"], "none", image_size=row["image_size"])
            passes = 3 if row["mode"] == "train" else 1
            operations = round(2e9 * gmacs * row["batch_size"] * passes)
            new = {**row, **own, "framework": variant, "gmacs": gmacs}
            found.append(cases.Case(new, peer.measure(number), operations))
    return found


def _measure(
    made: Sequence[cases.Case], *, rounds: int, seconds: float
) -> tuple[list[dict[str, Any]], float | None]:
    """The rows, and the matmul peak in GFLOPS (None where no matmul was measured)."""
    shapes = peak.largest(shape for case in made for shape in case.shapes)
    dtype = made[0].row["dtype"]
    measures = {i: case.measure for i, case in enumerate(made)}
    for shape in shapes:
        timed = measure(peak.matmul(shape, dtype))
        # The matmuls together take a model's time.
        measures[shape] = lambda repeats, timed=timed: timed(-(-repeats // len(shapes)))
    times = interleave(measures, rounds=rounds, seconds=seconds)
    # The peak of a round is its fastest shape; it varies with the clock as the models' times do.
    best = [
        max(peak.operations(shape) / times[shape].seconds[turn] / 1e9 for shape in shapes)
        for turn in range(rounds if shapes else 0)
    ]
    first = {}  # of each batch size: what its speed-ups are over
    for i, case in enumerate(made):
        first.setdefault(case.row["batch_size"], times[i])
    rows = [
        _row(case, times[i], first[case.row["batch_size"]], best) for i, case in enumerate(made)
    ]
    return rows, statistics.median(best) if best else None


def _row(case: cases.Case, took: Timing, first: Timing, best: Sequence[float]) -> dict[str, Any]:
    batch_size = case.row["batch_size"]
    share = None
    if best and case.operations:
        share = statistics.median(
            case.operations / seconds / 1e9 / peak
            for seconds, peak in zip(took.seconds, best, strict=True)
        )
    memory = case.row["peak_memory_mb"]
    return {
        **case.row,
        "gmacs": round(case.row["gmacs"], 3),
        "images_per_second": round(batch_size / took.median, 2),
        "latency_ms": round(1e3 * took.median, 3),
        "spread": round(took.spread, 3),
        "speedup": round(ratio(first, took), 3),
        "share_of_peak": None if share is None else round(share, 3),
        "peak_memory_mb": None if memory is None else round(memory, 1),
        "compile_seconds": round(case.row["compile_seconds"], 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Raises:
      UserError: bad flags, models or data, or an output that cannot be written.
    """
    flags = parse_flags(arguments)
    batch_sizes, chosen = check(flags)
    folder = output_folder.open_folder(flags.output) if flags.output else None
    if flags.mode == "data":
        found, table = _data(flags, batch_sizes, chosen)
    else:
        cpu.keep_memory()  # as the training's command does
        found = run(
            cases.parse_models(flags.models),
            batch_sizes=batch_sizes,
            mode=flags.mode,
            dtype=flags.dtype,
            image_size=flags.image_size,
            chunk=flags.chunk,
            remat=flags.remat,
            timm=bool(chosen),
            rounds=flags.rounds,
            seconds=flags.seconds,
        )
        table = benchmark_report.table(found)
    print(table)
    if folder:
        benchmark_report.write(found, table, folder)
        print(f"written to {folder}")
    if flags.json:
        print(json.dumps(found), flush=True)


def _data(
    flags: argparse.Namespace, batch_sizes: Sequence[int], chosen: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """The data pipeline's report and its table, at the last of `batch_sizes`."""
    from evovit_jax import benchmark_data

    rows = benchmark_data.run(
        flags.data,
        peers=chosen,
        batch_size=batch_sizes[-1],
        image_size=flags.image_size or 224,
        rounds=flags.rounds,
        seconds=flags.seconds,
        data_dir=flags.data_dir,
    )
    found = {"device": "cpu", "matmul_peak_gflops": None, "rows": rows}
    return found, benchmark_data.format_table(rows)


if __name__ == "__main__":
    run_command(main)
