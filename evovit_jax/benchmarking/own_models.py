"""What the benchmark times: a model, its pass compiled for a batch, and what that pass costs."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax import flops
from evovit_jax.benchmarking import matmul_peak
from evovit_jax.benchmarking.timing import Measure, measure
from evovit_jax.errors import UserError
from evovit_jax.hardware import limits
from evovit_jax.inference.compiled import default_chunk
from evovit_jax.inference.compiled import program as program_of
from evovit_jax.models import abstract_model, create_model
from evovit_jax.models.registry import model_entry
from evovit_jax.parallel import inference_program, sharding
from evovit_jax.reduction import describe
from evovit_jax.train.program import build

MODES = ("inference", "train")
IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Case:
    """One row to be.

    Attributes:
      row: the fields of the row that are known before it is timed.
      measure: times it.
      operations: floating-point operations of the matmuls and convolutions of one call.
      shapes: matmuls to measure the peak at.
    """

    row: dict[str, Any]
    measure: Measure
    operations: int | None = None
    shapes: frozenset[matmul_peak.Shape] = frozenset()


def parse_models(text: str) -> list[tuple[str, str]]:
    """(name, reduction) of each of `"A;B+evit,keep_rate=0.7"`; without one, the model's own.

    Raises:
      UserError: for an unknown model, or where nothing is named.
    """
    models = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, reduction = (piece.strip() for piece in part.partition("+"))
        entry = model_entry(name)
        models.append((name, describe(reduction or entry.reduction)))
    if not models:
        raise UserError("--models names no model; for example --models=deit_small_patch16_224")
    return models


def make(
    name: str,
    reduction: str,
    *,
    batch_size: int,
    mode: str,
    dtype: str = "float32",
    image_size: int | None = None,
    chunk: int | None = None,
    remat: str = "none",
) -> Case:
    """Compiles a pass of a model with random weights over random images."""
    if mode == "inference":
        model = create_model(name, reduction, image_size=image_size, dtype=dtype)
        side = model.config.image_size
        _check_fits(model, batch_size)
        chunk = default_chunk(side) if chunk is None else chunk
        call, cost = _inference(model, batch_size, chunk)
        rows = min(batch_size, chunk or batch_size)
    else:
        model = abstract_model(name, reduction, image_size=image_size, dtype=dtype)
        side, rows = model.config.image_size, batch_size
        _check_fits(model, batch_size)
        config = training_config(model, name, reduction, batch_size=batch_size)
        config.model.dtype, config.model.remat = dtype, remat
        call = Training(config)
        cost = call.cost
    row = {
        "framework": "evovit_jax",
        "model": name,
        "reduction": reduction,
        "dtype": dtype,
        "batch_size": batch_size,
        "mode": mode,
        "image_size": side,
        "gmacs": flops.gmacs(model),
        "peak_memory_mb": cost.memory_mb,
        "compile_seconds": cost.compile_seconds,
    }
    shapes = frozenset(matmul_peak.matmul_shapes(model, rows))
    return Case(row, measure(call), cost.operations, shapes)


def _check_fits(model: nnx.Module, batch_size: int) -> None:
    side = model.config.image_size
    needed = 4 * model.config.in_channels * batch_size * side**2
    limits.check_memory(f"--batch_sizes={batch_size} of {side} px needs", needed)


def memory_mb(compiled: jax.stages.Compiled) -> float:
    """Arguments, results and temporaries of a compiled program, as the compiler lays them out."""
    sizes = compiled.memory_analysis()
    total = (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )
    return total / 2**20


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a compiled program takes: floating-point operations, memory, seconds to compile."""

    operations: int
    memory_mb: float
    compile_seconds: float


def _compile(
    lower: Callable[[], jax.stages.Lowered], function: Callable, *arguments: Any
) -> tuple[jax.stages.Compiled, Cost]:
    """What `lower` lowers, compiled; `function` of these arguments is what it computes."""
    start = time.perf_counter()
    compiled = lower().compile()
    seconds = time.perf_counter() - start
    operations = 2 * flops.macs_of(function, *arguments)
    return compiled, Cost(operations, memory_mb(compiled), seconds)


def _inference(
    model: nnx.Module, batch_size: int, chunk: int | None
) -> tuple[Callable[[], Any], Cost]:
    side, channels = model.config.image_size, model.config.in_channels
    images = jax.random.normal(jax.random.key(0), (batch_size, side, side, channels))
    logits, state = program_of(model, chunk=chunk)
    lower = functools.partial(inference_program.jitted(logits).lower, state, images)
    compiled, cost = _compile(lower, logits, state, images)
    return lambda: compiled(state, images).block_until_ready(), cost


def training_config(model: nnx.Module, name: str, reduction: str, *, batch_size: int) -> ConfigDict:
    """A run of the model without what only a recipe adds: no mixing, no erasing, no average.

    An encoder, which has no classes, gets ImageNet's.
    """
    config = config_lib.get_config()
    config.model.name, config.reduction = name, reduction
    config.model.image_size = model.config.image_size
    config.model.num_classes = model.config.num_classes or IMAGENET_CLASSES
    config.batch_size = config.eval_batch_size = batch_size
    config.augment.update(mixup=0.0, cutmix=0.0, erasing_prob=0.0)
    config.ema.decay = 0.0
    return config


class Training:
    """The trainer's own compiled step, on random pixels; a call takes one more step."""

    def __init__(self, config: ConfigDict):
        program = build(config, jax.devices()[:1], examples=config.batch_size)
        # The last phase's reduction is the configured one.
        step = program.step_at(program.total)
        self.state = program.fresh_state()
        side = config.model.image_size
        shape = (config.batch_size, side, side, 3)
        self._batch = sharding.put_batch(
            program.mesh,
            {
                "image": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
                "label": np.zeros(config.batch_size, np.int32),
            },
        )
        with jax.set_mesh(program.mesh):
            self._compiled, self.cost = _compile(
                functools.partial(step.lower, self.state, self._batch),
                functools.partial(program.step, overrides=step.overrides),
                self.state,
                self._batch,
            )

    def __call__(self) -> None:
        """Takes a step and waits for it."""
        self.state = jax.block_until_ready(self._compiled(self.state, self._batch, None))
