"""Functions that are computed in one way on TPUs and in another elsewhere, with equal results.

Which way is taken follows the platform that a program is compiled for, which need not be this
process's: a program may be compiled ahead of time for devices that are not here.
"""

from collections.abc import Callable
from typing import Any

import jax

# The platform that everything traced inside is compiled for, where that is known beforehand:
# `with compiling_for("cpu"): ...`. It is part of the key of JAX's caches.
compiling_for = jax.make_user_context(default_value=None)
# What JAX calls the device that everything traced inside is compiled for, "NVIDIA H100 80GB HBM3",
# where it is not here and no mesh has it.
device_kind = jax.make_user_context(default_value=None)
# What `compiling_for` takes for a program that may run on several platforms, and for one that is
# handed to a library with other operators than XLA's, such as ONNX.
SEVERAL, OTHER = "several", "other"


def by_platform(
    *arrays: Any,
    tpu: Callable[..., Any],
    gpu: Callable[..., Any] | None = None,
    default: Callable[..., Any],
) -> Any:
    """`tpu` of the arrays in a program for a TPU, `gpu` for a GPU, and `default` in any other.

    All return arrays of the same shapes and dtypes. Where `compiling_for` or the mesh's devices
    say which platform it is, one is traced; else each, and the compiler sees the one that it needs.
    """
    ways = {"tpu": tpu} | ({"gpu": gpu} if gpu else {})
    platform = known_platform()
    if platform not in (None, SEVERAL):
        return ways.get(platform, default)(*arrays)
    named = {"tpu": tpu} | ({"cuda": gpu, "rocm": gpu} if gpu else {})
    return jax.lax.platform_dependent(*arrays, default=default, **named)


def as_one(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function` of the arrays; in a program for another library one call that has its name.

    Such a library may have an operator for all of it.
    """
    return (jax.jit(function) if known_platform() == OTHER else function)(*arrays)


def platform() -> str:
    """The platform that a program traced here is compiled for; this process's if nobody says it."""
    return known_platform() or jax.default_backend()


def known_platform() -> str | None:
    """The platform that `compiling_for` or the mesh's devices name; None where neither does."""
    return compiling_for.value or mesh_platform()


def mesh_platform() -> str | None:
    """The platform of the devices of the mesh that is set, "tpu" or "cpu"; None where none is."""
    device = _mesh_device()
    return None if device is None else device.platform


def named_device() -> str | None:
    """What JAX calls the device that `device_kind` or the mesh names; None where neither does."""
    device = _mesh_device()
    return device_kind.value or (None if device is None else device.device_kind)


def _mesh_device() -> jax.sharding.AbstractDevice | None:
    return jax.sharding.get_abstract_mesh().abstract_device
