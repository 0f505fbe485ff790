"""What the benchmark times: a model, its pass compiled for a batch, and what that pass costs.

Tested in tests/benchmark_test.py.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from evovit_jax import flops
from evovit_jax.benchmarking import matmul_peak
from evovit_jax.benchmarking.timing import Measure, measure
from evovit_jax.errors import UserError
from evovit_jax.hardware import cpu
from evovit_jax.inference.compiled import default_chunk
from evovit_jax.inference.compiled import program as program_of
from evovit_jax.models import create_model
from evovit_jax.models.registry import model_entry
from evovit_jax.models.variables import Skeleton
from evovit_jax.reduction import describe

MODES = ("inference", "train")


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
    chosen = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, reduction = (piece.strip() for piece in part.partition("+"))
        entry = model_entry(name)
        chosen.append((name, describe(reduction or entry.reduction)))
    if not chosen:
        raise UserError("--models names no model; for example --models=deit_small_patch16_224")
    return chosen


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
    remat = remat if remat != "none" else None
    model = create_model(name, reduction, image_size=image_size, dtype=dtype, remat=remat)
    side = model.config.image_size
    images = jax.random.normal(
        jax.random.key(0), (batch_size, side, side, model.config.in_channels)
    )
    if mode == "inference":
        chunk = default_chunk(side) if chunk is None else chunk
        call, program, seconds = _inference(model, images, chunk)
        rows = min(batch_size, chunk or batch_size)
    else:
        call, program, seconds = _training(model, images)
        rows = batch_size
    compiled, operations = program
    row = {
        "framework": "evovit_jax",
        "model": name,
        "reduction": reduction,
        "dtype": dtype,
        "batch_size": batch_size,
        "mode": mode,
        "image_size": side,
        "gmacs": flops.gmacs(model),
        "peak_memory_mb": memory_mb(compiled),
        "compile_seconds": seconds,
    }
    shapes = frozenset(matmul_peak.matmul_shapes(model, rows))
    return Case(row, measure(call), operations, shapes)


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


def _compile(function: Callable, *arguments: Any, **settings: Any) -> Any:
    start = time.perf_counter()
    compiled = jax.jit(function, **settings).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return (compiled, 2 * flops.macs_of(function, *arguments)), seconds


def _inference(model: nnx.Module, images: jax.Array, chunk: int | None) -> tuple:
    logits, state = program_of(model, chunk=chunk)
    program, seconds = _compile(logits, state, images)
    compiled = program[0]
    return lambda: compiled(state, images).block_until_ready(), program, seconds


def _training(model: nnx.Module, images: jax.Array) -> tuple:
    """A step of AdamW on the cross-entropy of the logits and, where there are some, of the rest."""
    skeleton, (params, stats) = Skeleton(model), Skeleton.variables(model)
    optimizer = optax.adamw(1e-4, weight_decay=0.05)
    labels = jnp.zeros(len(images), jnp.int32)

    def loss(params: Any, stats: Any, images: jax.Array, key: jax.Array) -> Any:
        model = skeleton.build(params, stats)
        logits, out = model(images, train=True, key=key)
        heads = [logits, *out.aux_logits.values()]
        losses = [optax.softmax_cross_entropy_with_integer_labels(x, labels).mean() for x in heads]
        total = sum(losses) / len(losses) + sum(out.losses.values())
        return total, Skeleton.variables(model)[1]

    def step(params: Any, stats: Any, opt_state: Any, images: jax.Array, key: jax.Array) -> Any:
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, images, key)
        with jax.numpy_dtype_promotion("standard"):  # optax's step count is an integer
            updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    state, key = (params, stats, optimizer.init(params)), jax.random.key(1)
    options = cpu.compiler_options(jax.default_backend(), model.config.remat)
    program, seconds = _compile(
        step, *state, images, key, donate_argnums=(0, 1, 2), compiler_options=options
    )
    compiled = program[0]

    def call() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(*state, images, key))

    return call, program, seconds
