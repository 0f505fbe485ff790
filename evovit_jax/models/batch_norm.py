"""Batch norm, and the layers that it folds into for inference."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.models.convolution import convolve
from evovit_jax.models.layers import REMAT_POLICIES, truncated_normal

# PyTorch's default for linear maps and convolutions: uniform in +-1 / sqrt(fan_in).
torch_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BatchNorm(nnx.Module):
    """Batch norm over all axes but the last, with PyTorch's running statistics.

    In a training pass it normalises with the batch's mean and biased variance and moves the
    running ones towards the batch's mean and unbiased variance. Under `jax.jit` on a sharded
    batch these are the global batch's: the statistics are synchronised over the mesh.
    Statistics are float32 whatever the compute dtype.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        initial_scale: float = 1.0,
        frozen: bool = False,
    ):
        self.eps, self.momentum, self.frozen = eps, momentum, frozen
        self.scale = nnx.Param(jnp.full((dim,), initial_scale))
        self.bias = nnx.Param(jnp.zeros((dim,)))
        self.mean = nnx.BatchStat(jnp.zeros((dim,)))
        self.var = nnx.BatchStat(jnp.ones((dim,)))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))  # batches seen

    def __call__(self, x: Float[Array, "*b d"], *, train: bool) -> Float[Array, "*b d"]:
        """Normalised `x`, in its dtype."""
        if train and not self.frozen:
            mean, var = self._observe(x.astype(jnp.float32))
        else:
            mean, var = self.mean[...], self.var[...]
        factor, shift = self.affine(mean, var)
        shape = (1,) * (x.ndim - 1) + (-1,)
        normalised = x.astype(jnp.float32) * factor.reshape(shape) + shift.reshape(shape)
        return normalised.astype(x.dtype)

    def _observe(self, x: Float[Array, "*b d"]) -> tuple[Array, Array]:
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axis=axes)
        var = jnp.square(x - mean.reshape((1,) * (x.ndim - 1) + (-1,))).mean(axis=axes)
        n = x.size // x.shape[-1]
        unbiased = var * (n / max(1, n - 1))
        for running, new in ((self.mean, mean), (self.var, unbiased)):
            running[...] = (1 - self.momentum) * running[...] + self.momentum * new
        self.count[...] = self.count[...] + 1
        return mean, var

    def affine(
        self, mean: Float[Array, "d"] | None = None, var: Float[Array, "d"] | None = None
    ) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
        """(factor, shift) of the map that this is; of the running statistics by default."""
        mean = self.mean[...] if mean is None else mean
        var = self.var[...] if var is None else var
        factor = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        return factor, self.bias[...] - mean * factor


def _with_bias(layer: nnx.Module, kernel: Array, bias: Array) -> None:
    layer.kernel[...] = kernel
    layer.bias = nnx.Param(bias)
    layer.use_bias = True


class LinearNorm(nnx.Module):
    """A linear map without bias, then batch norm."""

    def __init__(
        self,
        dim: int,
        out: int,
        *,
        dtype: Any,
        initial_scale: float = 1.0,
        frozen: bool = False,
        eps: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        self.linear = nnx.Linear(
            dim, out, use_bias=False, kernel_init=torch_uniform, dtype=dtype, rngs=rngs
        )
        self.bn = BatchNorm(out, eps=eps, initial_scale=initial_scale, frozen=frozen)

    def __call__(self, x: Float[Array, "*b d"], *, train: bool) -> Float[Array, "*b e"]:
        """The map of each token on its own."""
        x = self.linear(x)
        return x if self.bn is None else self.bn(x, train=train)

    def fold(self) -> None:
        """Folds the batch norm's running statistics into the linear map, for inference."""
        if self.bn is not None:
            factor, shift = self.bn.affine()
            _with_bias(self.linear, self.linear.kernel[...] * factor[None], shift)
            self.bn = None


class ConvNorm(nnx.Module):
    """A convolution without bias, then batch norm."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dtype: Any,
        frozen: bool = False,
        eps: float = 1e-5,
        initial_scale: float = 1.0,
        kernel_init: nnx.Initializer = torch_uniform,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            channels,
            out,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            feature_group_count=groups,
            conv_general_dilated=convolve,
            use_bias=False,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = BatchNorm(out, eps=eps, initial_scale=initial_scale, frozen=frozen)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b y x e"]:
        """The convolution, padded by half its kernel."""
        x = self.conv(x)
        return x if self.bn is None else self.bn(x, train=train)

    def fold(self) -> None:
        """Folds the batch norm's running statistics into the convolution, for inference."""
        if self.bn is not None:
            factor, shift = self.bn.affine()
            _with_bias(self.conv, self.conv.kernel[...] * factor[None, None, None], shift)
            self.bn = None


class NormLinear(nnx.Module):
    """Batch norm, then a linear map: a classification head, in float32."""

    def __init__(self, dim: int, out: int, *, frozen: bool = False, rngs: nnx.Rngs):
        self.bn = BatchNorm(dim, frozen=frozen)
        self.linear = nnx.Linear(dim, out, kernel_init=truncated_normal, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"], *, train: bool) -> Float[Array, "b k"]:
        """Logits."""
        x = x.astype(jnp.float32)
        return self.linear(x if self.bn is None else self.bn(x, train=train))

    def fold(self) -> None:
        """Folds the batch norm's running statistics into the linear map, for inference."""
        if self.bn is not None:
            factor, shift = self.bn.affine()
            kernel = self.linear.kernel[...]
            _with_bias(
                self.linear, kernel * factor[:, None], self.linear.bias[...] + shift @ kernel
            )
            self.bn = None


def recomputed(function: Callable, remat: str) -> Callable:
    """`function(modules, x)`, computed again in the backward pass as `remat` says."""
    # nnx.remat, not jax.checkpoint: it hands on the statistics that batch norm updates.
    policy = REMAT_POLICIES[remat]
    return function if policy is None else nnx.remat(function, policy=policy)


def fuse(model: nnx.Module) -> nnx.Module:
    """A copy of `model` for inference, with every batch norm folded into the layer beside it."""
    folded = nnx.clone(model)
    fold_in_place(folded)
    return folded


def fold_in_place(model: nnx.Module) -> bool:
    """Folds every batch norm of `model`; whether there was one."""
    modules = [module for _, module in nnx.iter_modules(model) if hasattr(module, "fold")]
    unfolded = [module for module in modules if module.bn is not None]
    for module in unfolded:
        module.fold()
    return bool(unfolded)
