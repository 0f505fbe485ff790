"""Training on a CPU: memory that the process keeps, and rematerialisation that is not undone."""

import ctypes
import os
import sys

import jax

# This pass of the CPU's compiler removes the barriers that keep remat from being undone: without
# them what is computed again is found to be the same as before, and kept after all.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}

# XLA may leave a rounding to bfloat16 out where it fuses what makes a value with what reads it, and
# here that depends on the batch's size: an image would not keep its tokens in any company.
ROUND_AS_WRITTEN = {"xla_allow_excess_precision": False}

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Makes the process keep the memory of a training step for the next one, on a CPU.

    As malloc comes, a step's buffers are mapped and unmapped each time, and the kernel clears every
    page anew (docs/performance.md). Large blocks are kept only in the main thread's heap, so that
    programs must be run by the thread that calls them. Other threads share a heap for each core:
    glibc makes eight, and in a long run, whose saves are written by a hundred threads, each of the
    eight comes to keep what a save takes. All this before JAX starts its devices and their threads.

    To be called by commands alone: it is a setting of the whole process.

    Returns:
      Whether anything was set: on Linux with glibc, where JAX runs on a CPU.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # of no concern to accelerators
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt(M_ARENA_MAX, os.cpu_count() or 1)
    if jax.default_backend() != "cpu":
        mallopt(M_ARENA_MAX, 0)  # as it was
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def give_back() -> bool:
    """Gives the system the memory that is kept and that nothing holds; what holds it stays.

    The heap of a long run is cut into ever smaller pieces, and grows where none of them is large
    enough: it keeps the most that it has ever had, and more.

    Returns:
      Whether anything was given: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim and trim(0))


def inference_options(platform: str) -> dict[str, bool]:
    """What the compiler of `platform` is told of a pass without training."""
    return ROUND_AS_WRITTEN if platform == "cpu" else {}


def compiler_options(platform: str, remat: str) -> dict[str, str]:
    """What the compiler of `platform` ("cpu", "gpu", ...) is told of a step that uses `remat`."""
    return KEEP_BARRIERS if platform == "cpu" and remat != "none" else {}
