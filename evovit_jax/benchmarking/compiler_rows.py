"""Rows of a benchmark for an accelerator that is not here: estimates, never measurements.

The compilers are those of `hardware/targets.py`.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from evovit_jax import flops, tables
from evovit_jax.benchmarking import own_models, programs
from evovit_jax.hardware import targets as known_targets
from evovit_jax.hardware.platforms import compiling_for, device_kind
from evovit_jax.hardware.program_operations import PARTS
from evovit_jax.hardware.target import Target
from evovit_jax.models import abstract_model

LONGEST_REASON = 300  # characters of a compiler's message; some hold a whole operation


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
      targets: names of `targets.KINDS`.
      batch_sizes: images at once.
      mode: "inference", "gradient" of the loss, or "train" for a step of the trainer.
      **settings: those of `compile_for`.

    Returns:
      `estimate_of`, the compilers with their versions, `rows`, and `failed`: what a compiler gave
      up, with its reason as `error`; the others go on. `second_try` of a row are the options that
      it took beyond the target's, {} for none.

    Raises:
      UserError: an unknown target or model, or a compiler that is missing or does not start.
    """
    chosen = [known_targets.parse(target, "--target") for target in targets]
    for target in chosen:
        target.check_installed("--target")
    rows, failed = [], []
    for target in chosen:
        with target.alone():
            place = target.devices()[0]
            for batch_size, (name, reduction) in itertools.product(batch_sizes, models):
                row = {"target": target.generation, "model": name, "reduction": reduction}
                row |= {"dtype": settings["dtype"], "batch_size": batch_size, "mode": mode}
                try:
                    program = compile_for(
                        place,
                        name,
                        reduction,
                        batch_size=batch_size,
                        mode=mode,
                        target=target,
                        **settings,
                    )
                except jax.errors.JaxRuntimeError as error:
                    failed.append(row | {"error": str(error).splitlines()[0][:LONGEST_REASON]})
                    print(_failure(failed[-1]), flush=True)
                    continue
                rows.append(row | program.row(target, settings["dtype"]))
                seconds = rows[-1]["compile_seconds"]
                print(f"{_named(row)} for {row['target']}: compiled in {seconds} s", flush=True)
    compilers = dict.fromkeys(target.version() for target in chosen)
    return {"estimate_of": "; ".join(compilers), "rows": rows, "failed": failed}


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['model']} {row['reduction']} at {row['batch_size']}"


def _failure(row: Mapping[str, Any]) -> str:
    return f"DOES NOT COMPILE for {row['target']}: {_named(row)}: {row['error']}"


@dataclasses.dataclass(frozen=True)
class Program:
    """A program compiled for a device that is not here.

    Attributes:
      compiled: it.
      operations: of its matrix products and convolutions, two a multiply-add.
      seconds: that compiling took.
      second_try: the options that it took beyond the target's.
    """

    compiled: jax.stages.Compiled
    operations: int
    seconds: float
    second_try: dict[str, Any]

    def row(self, target: Target, dtype: str) -> dict[str, Any]:
        """What it should take on a device of the target."""
        estimate = target.estimate(self.compiled.as_text(), self.operations, dtype)
        memory = self.compiled.memory_analysis()
        return {
            "estimated_ms": round(estimate.ms[1], 2),
            "estimated_ms_low": round(estimate.ms[0], 2),
            "gflop": round(self.operations / 1e9, 1),
            "temporary_mb": round(memory.temp_size_in_bytes / 2**20),
            "memory_mb": round(own_models.memory_mb(self.compiled)),
            **estimate.fields,
            "without_estimate": estimate.unknown,
            "compile_seconds": round(self.seconds, 1),
            "second_try": self.second_try,
        }


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
    target: Target | None = None,
) -> Program:
    """A pass, a gradient or a training step of a model compiled for `place`, from shapes alone.

    The settings are those of `rows.run`; `target` compiles, or None for the compiler of `place` as
    it comes. The images are floats of `dtype`, and in training bytes, as the trainer's step takes
    them.
    """
    model = abstract_model(name, reduction, image_size=image_size, dtype=dtype)
    if mode == "inference":
        work = programs.inference(model, place, batch_size, chunk)
    elif mode == "gradient":
        work = programs.gradient(model, place, batch_size)
    else:
        config = own_models.training_config(model, name, reduction, batch_size=batch_size)
        config.model.dtype, config.model.remat = dtype, remat
        work = programs.training(config, place, programs.images_of(model, batch_size, "uint8"))
    start = time.perf_counter()
    with (
        compiling_for(place.platform),
        device_kind(place.device_kind),
        jax.set_mesh(work.mesh) if work.mesh else contextlib.nullcontext(),
    ):
        lowered = work.lower(*work.arguments)
        compiled, second_try = target.compile(lowered) if target else (lowered.compile(), {})
    seconds = time.perf_counter() - start
    with compiling_for("cpu"):  # the method's own operations, not those in place of indexing
        operations = 2 * flops.macs_of(work.function, *work.arguments)
    return Program(compiled, operations, seconds, second_try)


COLUMNS = {
    "target": "target",
    "model": "model",
    "reduction": "reduction",
    "batch_size": "batch",
    "estimated_ms": "estimated ms",
    "estimated_ms_low": "at least ms",
    "estimated_share_of_peak": "estimated share of peak",
    "gflop": "GFLOP",
    "temporary_mb": "temporary MB",
    "kernels": "kernels",
}


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown, where the time goes, and, loudly, what has no estimate or program.

    Targets of different kinds have a table each.
    """
    kinds = [known_targets.KINDS[row["target"]] for row in found["rows"]]
    parts = ["\n".join(_table_of(kind, found)) for kind in dict.fromkeys(kinds)]
    return "\n\n".join([*parts, *map(_failure, found["failed"])])


def _table_of(kind: type[Target], found: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in found["rows"] if known_targets.KINDS[row["target"]] is kind]
    columns = COLUMNS | kind.columns
    yield (
        f"ESTIMATES {kind.what} ({found['estimate_of']}), not measurements; "
        f"{rows[0]['dtype']}, {rows[0]['mode']}"
    )
    yield ""
    cells = [[*map(row.get, columns), *(row[kind.parts].get(p, 0) for p in PARTS)] for row in rows]
    yield tables.markdown([*columns.values(), *PARTS], cells)
    for row in rows:
        if row["without_estimate"]:
            named = ", ".join(f"{n} {name}" for name, n in row["without_estimate"].items())
            yield f"NOT COUNTED in {_named(row)}: {named}"
        if row["second_try"]:
            given = ", ".join(f"{name}={value}" for name, value in row["second_try"].items())
            yield f"COMPILED AT A SECOND TRY, {_named(row)}: {given}"
