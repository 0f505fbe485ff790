"""RegNetY (Radosavovic et al., 2020): the convolutional network that teaches DeiT and LeViT.

A stem, then four stages of bottlenecks: 1x1 convolution, grouped 3x3 convolution, squeeze and
excitation (Hu et al., 2018), 1x1 convolution, each convolution with batch norm.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import ConvNorm, torch_uniform
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.registry import Entry
from evovit_jax.models.unreduced import Unreduced

he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class RegNetConfig:
    """Every setting of a RegNetY.

    Attributes:
      image_size: side of the images that it was made for, pixels; any other works.
      in_channels: channels of the images.
      num_classes: size of the logits.
      stem_width: channels of the stem.
      widths: channels of each stage.
      depth: blocks of each stage.
      group_width: channels of a group of the 3x3 convolutions.
      se_ratio: squeezed channels over the block's input channels.
      freeze_norm: batch norm uses, and keeps, its running statistics in training too.
      dtype: compute dtype of convolutions; parameters, statistics and logits stay float32.
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    stem_width: int = 32
    widths: tuple[int, ...] = (224, 448, 1232, 3024)
    depth: tuple[int, ...] = (2, 4, 11, 1)
    group_width: int = 112
    se_ratio: float = 0.25
    freeze_norm: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        check_fields(self)
        if len(self.widths) != len(self.depth):
            raise UserError("widths and depth must have one number for each stage")
        if any(width % self.group_width for width in self.widths):
            raise UserError(f"widths {self.widths} do not divide into groups of {self.group_width}")

    def layer_settings(self, rngs: nnx.Rngs) -> dict:
        """What every convolution is made with."""
        return {
            "dtype": jnp.dtype(self.dtype),
            "frozen": self.freeze_norm,
            "kernel_init": he_normal,
            "rngs": rngs,
        }


class SqueezeExcite(nnx.Module):
    """Channels scaled by a small network of their means."""

    def __init__(self, channels: int, squeezed: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        made = {"kernel_init": torch_uniform, "dtype": dtype, "rngs": rngs}
        self.fc1 = nnx.Conv(channels, squeezed, (1, 1), **made)
        self.fc2 = nnx.Conv(squeezed, channels, (1, 1), **made)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """`x` with scaled channels."""
        mean = x.mean(axis=(1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(mean))))


class Bottleneck(nnx.Module):
    """One block; `downsample` where its output has another shape than its input."""

    def __init__(
        self, config: RegNetConfig, channels: int, out: int, stride: int, *, rngs: nnx.Rngs
    ):
        made = config.layer_settings(rngs)
        groups = out // config.group_width
        self.conv1 = ConvNorm(channels, out, 1, **made)
        self.conv2 = ConvNorm(out, out, 3, stride=stride, groups=groups, **made)
        self.se = SqueezeExcite(
            out, round(channels * config.se_ratio), dtype=made["dtype"], rngs=rngs
        )
        self.conv3 = ConvNorm(out, out, 1, initial_scale=0.0, **made)
        changes = stride != 1 or channels != out
        self.downsample = ConvNorm(channels, out, 1, stride=stride, **made) if changes else None

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b y x d"]:
        """The block's output."""
        branch = jax.nn.relu(self.conv1(x, train=train))
        branch = jax.nn.relu(self.conv2(branch, train=train))
        branch = self.conv3(self.se(branch), train=train)
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        return jax.nn.relu(branch + shortcut)


class RegNet(Unreduced):
    """A RegNetY; it has no tokens, so its only reduction is "none".

    `model(images)` returns float32 logits `[batch, num_classes]` and `Outputs`, whose features are
    the places of the last map. A training pass updates batch norm's statistics in place.
    """

    Config = RegNetConfig
    smoke: ClassVar = {"stem_width": 8, "widths": (8, 16), "depth": (1, 1), "group_width": 8}

    def __init__(self, config: RegNetConfig, reduction=None, *, rngs: nnx.Rngs):
        if reduction not in (None, "", "none"):
            raise UserError(f"a RegNet has no tokens to reduce (reduction={reduction!r})")
        self.config = config
        made = config.layer_settings(rngs)
        self.stem = ConvNorm(config.in_channels, config.stem_width, 3, stride=2, **made)
        channels, stages = config.stem_width, []
        for width, depth in zip(config.widths, config.depth, strict=True):
            blocks = nnx.List()
            for block in range(depth):
                blocks.append(
                    Bottleneck(config, channels, width, 2 if block == 0 else 1, rngs=rngs)
                )
                channels = width
            stages.append(blocks)
        self.stages = nnx.List(stages)
        self.head = nnx.Linear(
            channels, config.num_classes, kernel_init=nnx.initializers.normal(0.01), rngs=rngs
        )

    def refusal(self, fields: list[str]) -> str:
        """The line that says why `fields` of a reduction cannot be set."""
        return f"a RegNet has no tokens to reduce, got {fields}"

    def forward(
        self, images: Float[Array, "b h w c"], *, train: bool, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits and features of one pass."""
        del key
        x = jax.nn.relu(self.stem(images.astype(jnp.dtype(self.config.dtype)), train=train))
        for blocks in self.stages:
            for block in blocks:
                x = block(x, train=train)
        features = x.reshape(x.shape[0], -1, x.shape[-1])
        logits = self.head(features.astype(jnp.float32).mean(axis=1))
        return logits, Outputs(features=features)


MODELS = {
    "regnety_160": Entry(
        RegNet,
        {},
        top1=82.9,
        weights="https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth",
    )
}
