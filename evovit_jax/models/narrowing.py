"""Parameters in the dtype that they are computed with."""

import jax.numpy as jnp
from flax import nnx


def narrow(model: nnx.Module) -> bool:
    """Rounds the parameters of layers that compute in bfloat16, in place; whether there was one.

    For inference: linear maps and convolutions round their kernels and biases in every call, to the
    same values. On a TPU that is a pass over each kernel, and anywhere twice the bytes to read.
    """
    found = False
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear | nnx.Conv) and module.dtype is not None:
            for variable in filter(None, (module.kernel, module.bias)):
                value = variable.get_value()
                if jnp.dtype(module.dtype).itemsize < value.dtype.itemsize:
                    variable.set_value(value.astype(module.dtype))
                    found = True
    return found
