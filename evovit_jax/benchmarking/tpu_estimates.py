"""Rows of a benchmark for a TPU that is not here: its compiler's estimates, never measurements.

The compiler is that of `hardware/tpu_compiler.py`.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from evovit_jax import flops
from evovit_jax.benchmarking import own_models
from evovit_jax.hardware import compiler_estimates, tpu_compiler
from evovit_jax.hardware.platforms import compiling_for
from evovit_jax.inference import compiled as inference
from evovit_jax.models import abstract_model
from evovit_jax.models.variables import Skeleton
from evovit_jax.parallel import sharding
from evovit_jax.train.program import build


def run(
    models: Sequence[tuple[str, str]],
    *,
    targets: Sequence[str],
    batch_sizes: Sequence[int],
    mode: str,
    **settings: Any,
) -> dict[str, Any]:
    """Compiles each model for each target and batch size.

    Args:
      models: (name, reduction) of each.
      targets: names of `tpu_compiler.GENERATIONS`.
      batch_sizes: images at once.
      mode: "inference", or "train" for a step of the trainer.
      **settings: those of `compile_for`.

    Returns:
      `estimate_of`, the compiler with its version, and `rows`.

    Raises:
      UserError: an unknown target or model, or a compiler that is missing or does not start.
    """
    slices = [tpu_compiler.parse(target, "--target") for target in targets]
    tpu_compiler.check_installed("--target")
    rows = []
    with tpu_compiler.alone():
        for target in slices:
            place = tpu_compiler.devices(target)[0]
            for batch_size, (name, reduction) in itertools.product(batch_sizes, models):
                program = compile_for(
                    place, name, reduction, batch_size=batch_size, mode=mode, **settings
                )
                row = {"target": target.generation, "model": name, "reduction": reduction}
                row |= {"dtype": settings["dtype"], "batch_size": batch_size, "mode": mode}
                rows.append(row | program.row(target.kind))
    return {"estimate_of": tpu_compiler.version(), "rows": rows}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program compiled for a device that is not here.

    Attributes:
      compiled: it.
      operations: of its matrix products and convolutions, two a multiply-add.
      seconds: that compiling took.
    """

    compiled: jax.stages.Compiled
    operations: int
    seconds: float

    def row(self, kind: tpu_compiler.Generation) -> dict[str, Any]:
        """What the compiler expects of it, on a device of that kind."""
        sums = compiler_estimates.estimate(self.compiled.as_text())
        memory = self.compiled.memory_analysis()
        return {
            "estimated_mcycles": millions(sums.cycles),
            "estimated_mcycles_low": millions(sums.low),
            "estimated_ms": round(1e3 * sums.cycles / kind.clock, 2),
            "estimated_ms_low": round(1e3 * sums.low / kind.clock, 2),
            "estimated_share_of_peak": round(self.operations / sums.cycles / kind.operations, 3),
            "gflop": round(self.operations / 1e9, 1),
            "temporary_mb": round(memory.temp_size_in_bytes / 2**20),
            "memory_mb": round(own_models.memory_mb(self.compiled)),
            "kernels": sums.kernels,
            "largest_copy_mcycles": millions(sums.largest_copy),
            "parts_mcycles": {part: millions(n) for part, n in sums.parts.items()},
            "without_estimate": sums.unknown,
            "compile_seconds": round(self.seconds, 1),
        }


def millions(cycles: float) -> float:
    """Cycles in millions, to two places."""
    return round(cycles / 1e6, 2)


def compile_for(
    place: jax.Device,
    name: str,
    reduction: str,
    *,
    batch_size: int,
    mode: str,
    dtype: str = "bfloat16",
    image_size: int | None = None,
    chunk: int | None = None,
    remat: str = "none",
) -> Program:
    """A pass or a training step of a model compiled for `place`, from shapes alone.

    The settings are those of `rows.run`; the images are floats of `dtype` in inference, and bytes
    in training, whose step is the trainer's.
    """
    model = abstract_model(name, reduction, image_size=image_size, dtype=dtype)
    side, channels = model.config.image_size, model.config.in_channels
    shape = (batch_size, side, side, channels)
    if mode == "inference":
        on = SingleDeviceSharding(place)
        chunk = inference.default_chunk(side, "tpu") if chunk is None else chunk
        graphdef, fold = inference.folded(model)
        look = inference.forward(graphdef, chunk=chunk)
        state = jax.eval_shape(fold, *Skeleton.variables(model))
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on),
            (state, jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))),
        )

        def function(state: Any, images: jax.Array) -> jax.Array:
            return look(state, images)[0]

        mesh, lower = None, jax.jit(function).lower
    else:
        config = own_models.training_config(model, name, reduction, batch_size=batch_size)
        config.model.dtype, config.model.remat = dtype, remat
        training = build(config, [place], examples=batch_size)
        mesh, step = training.mesh, training.step_at(training.total)
        on = sharding.batch_sharding(mesh)
        batch = {
            "image": jax.ShapeDtypeStruct(shape, "uint8", sharding=on),
            "label": jax.ShapeDtypeStruct((batch_size,), "int32", sharding=on),
        }
        arguments, lower = (training.like, batch), step.lower
        function = functools.partial(training.step, overrides=step.overrides)
    start = time.perf_counter()
    with compiling_for("tpu"), jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        compiled = lower(*arguments).compile()
    seconds = time.perf_counter() - start
    with compiling_for("cpu"):  # the method's own operations, not those in place of indexing
        return Program(compiled, 2 * flops.macs_of(function, *arguments), seconds)


COLUMNS = {
    "target": "target",
    "model": "model",
    "reduction": "reduction",
    "batch_size": "batch",
    "estimated_mcycles": "estimated M cycles",
    "estimated_mcycles_low": "at least",
    "estimated_ms": "estimated ms",
    "estimated_share_of_peak": "estimated share of peak",
    "gflop": "GFLOP",
    "temporary_mb": "temporary MB",
    "kernels": "kernels",
}


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown, where the time goes, and, loudly, what has no estimate."""
    rows = found["rows"]
    lines = [
        f"ESTIMATES of the compiler ({found['estimate_of']}), not measurements; "
        f"{rows[0]['dtype']}, {rows[0]['mode']}",
        "",
        "| " + " | ".join([*COLUMNS.values(), *compiler_estimates.PARTS]) + " |",
        "|" + "---|" * (len(COLUMNS) + len(compiler_estimates.PARTS)),
    ]
    for row in rows:
        parts = [row["parts_mcycles"].get(part, 0) for part in compiler_estimates.PARTS]
        lines.append("| " + " | ".join(map(str, [*map(row.get, COLUMNS), *parts])) + " |")
    for row in rows:
        if row["without_estimate"]:
            named = ", ".join(f"{n} {name}" for name, n in row["without_estimate"].items())
            lines.append(
                f"NOT COUNTED in {row['model']} {row['reduction']} at {row['batch_size']}: {named}"
            )
    return "\n".join(lines)
