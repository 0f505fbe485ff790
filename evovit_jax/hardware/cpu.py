"""What a CPU's compiler is told, and the memory that a process keeps while it trains on one."""

import ctypes
import functools
import os
import pathlib
import sys
from typing import Any

import jax

# This pass of the CPU's compiler removes the barriers that keep remat from being undone: without
# them what is computed again is found to be the same as before, and kept after all.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}

# XLA may leave a rounding to bfloat16 out where it fuses what makes a value with what reads it, and
# here that depends on the batch's size: an image would not keep its tokens in any company.
ROUND_AS_WRITTEN = {"xla_allow_excess_precision": False}

# On Intel's cores with AVX-512 (docs/performance.md): loops in whole vectors, which the compiler
# halves by itself, and matmuls by oneDNN, which is part of jaxlib. Not oneDNN's fusions of several
# operations: with them some programs end the process.
WIDE_VECTORS = {"xla_cpu_prefer_vector_width": 512}
ONEDNN = {
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}
CORES = pathlib.Path("/proc/cpuinfo")

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


def inference_options(platform: str) -> dict[str, Any]:
    """What the compiler of `platform` ("cpu", "gpu", ...) is told of a pass without training."""
    return ROUND_AS_WRITTEN | core_options() if platform == "cpu" else {}


def training_options(platform: str, remat: str) -> dict[str, Any]:
    """What the compiler of `platform` is told of a training step that uses `remat`."""
    if platform != "cpu":
        return {}
    return (KEEP_BARRIERS if remat != "none" else {}) | core_options()


def core_options() -> dict[str, Any]:
    """What suits the cores of this machine, where its compiler knows these options.

    JAX cannot write programs with oneDNN's matmuls to its cache of compiled programs: who has set
    one (`JAX_COMPILATION_CACHE_DIR`) gets the others.
    """
    if not (intel_with_avx512() and takes_avx512()):
        return {}
    return WIDE_VECTORS | ({} if jax.config.jax_compilation_cache_dir else ONEDNN)


def intel_with_avx512() -> bool:
    """Whether Linux says that the cores are Intel's and have AVX-512."""
    try:
        core = CORES.read_text().partition("\n\n")[0]
    except OSError:
        return False
    return "GenuineIntel" in core and "avx512f" in core.split()


@functools.cache
def takes_avx512() -> bool:
    """Whether JAX's compiler takes the options for AVX-512: some come and go with its versions."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        try:
            jax.jit(lambda x: x, compiler_options=WIDE_VECTORS | ONEDNN).lower(0).compile()
        except jax.errors.JaxRuntimeError:
            return False
    return True
