"""Refuses a run that no memory here can hold, before anything of it is made.

Only what a run needs at the least is counted: its state, batches, and one block's attention.
Whether the rest fits, `main --plan` says.
"""

import math
from typing import Any

import jax
import numpy as np

from evovit_jax.hardware import limits
from evovit_jax.inference.evaluation import MADE_AHEAD
from evovit_jax.models.vit import VisionTransformer
from evovit_jax.train.program import Program


def check(run: Program) -> None:
    """Compares what a run needs with the memory of this process's devices, and of its host.

    Raises:
      UserError: it needs more, naming what and how much.
    """
    config, local = run.config, run.mesh.local_devices
    state = sum(_on_device(leaf) for leaf in jax.tree.leaves((run.like, run.teacher_like)))
    side, size = config.model.image_size, config.batch_size
    image = 3 * side * side
    batch = size // run.mesh.size * image
    batch += batch // config.accumulate * np.dtype(np.float32).itemsize
    largest = max(size, config.eval_batch_size) // run.mesh.size * len(local)
    host, device = limits.memory(), _device_memory(local)
    what = f"the state of {config.model.name} of these sizes needs"
    limits.check_memory(what, state, device, "a device")
    limits.check_memory(f"batch_size={size} of {side} px needs", batch, device, "a device")
    tokens, attention = _attention(run)
    what = f"attention among {tokens} tokens in training at batch_size={size} needs"
    limits.check_memory(what, attention, device, "a device")
    what = f"batches of {largest} x {side} px need"
    limits.check_memory(what, MADE_AHEAD * largest * image, host, "the host")


def _on_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on one device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _attention(run: Program) -> tuple[int, int]:
    """(tokens, bytes on one device) of one block's attention weights; of flat networks alone.

    The backward pass has all of them at once, but for a GPU's fused kernel.
    """
    config, model = run.config, run.skeleton.build(run.like.params, run.like.stats)
    if not isinstance(model, VisionTransformer):
        return 0, 0
    on_gpu = run.mesh.local_devices[0].platform == "gpu"
    if on_gpu and model.config.attention_kernel != "matmul":
        return 0, 0
    tokens = model.prefix + math.prod(model.grid)
    images = config.batch_size // run.mesh.size // config.accumulate
    each = model.config.num_heads * tokens**2 * np.dtype(model.config.dtype).itemsize
    return tokens, images * each


def _device_memory(local: list[Any]) -> float:
    """Bytes of a device, infinite where it does not say; CPU devices share the host's."""
    if local[0].platform == "cpu":
        return limits.memory() / len(local)
    return (local[0].memory_stats() or {}).get("bytes_limit", math.inf)
