"""A benchmark's rows: models, beside other libraries' where asked for, timed in turns."""

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any

import jax

from evovit_jax import flops
from evovit_jax.benchmarking import matmul_peak, own_models, timm_models
from evovit_jax.benchmarking.timing import Timing, interleave, measure, ratio
from evovit_jax.models import abstract_model
from evovit_jax.reduction import describe


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
        peer = stack.enter_context(timm_models.start()) if timm else None
        for batch_size in batch_sizes:
            own_cases = [
                own_models.make(name, reduction, batch_size=batch_size, **settings, **own)
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


def _peer_cases(peer: timm_models.Peer, made: Sequence[own_models.Case]) -> list[own_models.Case]:
    """timm's model of each name that is among `made`, eager and compiled; timm has no Evo-ViT."""
    cases, seen = [], set()
    for case in made:
        row = {**case.row, "reduction": describe(None)}
        if row["model"] in seen:
            continue
        seen.add(row["model"])
        for variant in timm_models.VARIANTS:
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
            gmacs = flops.gmacs(abstract_model(row["model"], "none", image_size=row["image_size"]))
            passes = 3 if row["mode"] == "train" else 1
            operations = round(2e9 * gmacs * row["batch_size"] * passes)
            new = {**row, **own, "framework": variant, "gmacs": gmacs}
            cases.append(own_models.Case(new, peer.measure(number), operations))
    return cases


def _measure(
    made: Sequence[own_models.Case], *, rounds: int, seconds: float
) -> tuple[list[dict[str, Any]], float | None]:
    """The rows, and the matmul peak in GFLOPS (None where no matmul was measured)."""
    shapes = matmul_peak.largest(shape for case in made for shape in case.shapes)
    dtype = made[0].row["dtype"]
    measures = {i: case.measure for i, case in enumerate(made)}
    for shape in shapes:
        timed = measure(matmul_peak.matmul(shape, dtype))
        # The matmuls together take a model's time.
        measures[shape] = lambda repeats, timed=timed: timed(-(-repeats // len(shapes)))
    times = interleave(measures, rounds=rounds, seconds=seconds)
    # The peak of a round is its fastest shape; it varies with the clock as the models' times do.
    best = [
        max(matmul_peak.operations(shape) / times[shape].seconds[turn] / 1e9 for shape in shapes)
        for turn in range(rounds if shapes else 0)
    ]
    first = {}  # of each batch size: what its speed-ups are over
    for i, case in enumerate(made):
        first.setdefault(case.row["batch_size"], times[i])
    rows = [
        _row(case, times[i], first[case.row["batch_size"]], best) for i, case in enumerate(made)
    ]
    return rows, statistics.median(best) if best else None


def _row(
    case: own_models.Case, took: Timing, first: Timing, best: Sequence[float]
) -> dict[str, Any]:
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
