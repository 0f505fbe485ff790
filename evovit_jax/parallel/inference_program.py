"""How every command compiles a pass without training, so that all get the same tokens and speed.

Tested in tests/inference/one_way_test.py.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from evovit_jax.hardware import cpu, platforms
from evovit_jax.parallel import sharding


def jitted(function: Callable[..., Any], mesh: Mesh | None = None) -> Any:
    """`jax.jit` of `function` with what its platform's compiler is told of inference.

    Args:
      function: of arrays.
      mesh: of the devices that it runs on; what it returns is then whole on each of them. None for
        the platform that is compiled for (`platforms.compiling_for`), or this process's own.
    """
    if mesh is None:
        return jax.jit(function, compiler_options=cpu.inference_options(platforms.platform()))
    options = cpu.inference_options(mesh.devices.flat[0].platform)
    return jax.jit(function, out_shardings=sharding.replicated(mesh), compiler_options=options)
