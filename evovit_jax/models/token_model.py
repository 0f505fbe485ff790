"""What all backbones with tokens do in a pass: embed, walk the blocks, classify.

Tested in tests/models/vit_test.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.models.outputs import Outputs, stage_maps
from evovit_jax.models.positions import resize_positions
from evovit_jax.reduction import Reducer
from evovit_jax.reduction.tokens import TokenSet, start_tokens
from evovit_jax.reduction.walk import Block, Subsampling, walk


class TokenModel(nnx.Module):
    """A network of blocks over tokens, with a reducer.

    `model(images)` returns float32 logits `[batch, num_classes]` and `Outputs`. Subclasses have
    `embed` and `classify`, and the attributes below.

    Attributes:
      Config: the dataclass of the settings.
      smoke: settings of the smallest sensible network, to try things out.
      config: the settings.
      prefix: number of class tokens and registers.
      grid: (rows, columns) of patch tokens that it was made for.
      patch_embed: whose `grid(height, width)` is that of other images.
      stages: the blocks of each stage; one stage in a flat network.
      downsamples: what lies between two stages.
      reducer: looks at, and replaces, the tokens on their way.
      read_tokens: how many of the first tokens the logits depend on after the last block; None for
        all.
    """

    Config: type
    smoke: ClassVar[Mapping[str, Any]]
    config: Any
    prefix: int
    grid: tuple[int, int]
    patch_embed: nnx.Module
    stages: Sequence[Sequence[Block]]
    downsamples: Sequence[Subsampling] = ()
    reducer: Reducer
    read_tokens: int | None = None

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Class and patch tokens with their positions, in the compute dtype."""
        raise NotImplementedError

    def resized(
        self, positions: Float[Array, "1 n d"], old: tuple[int, int], new: tuple[int, int]
    ) -> Float[Array, "1 m d"]:
        """Learned positions of the patches of one grid for another."""
        return resize_positions(positions, old, new)

    def placed_patches(
        self, images: Float[Array, "b h w c"], positions: Float[Array, "1 n d"], *, train: bool
    ) -> Float[Array, "b p d"]:
        """Patch tokens with the learned `positions` of `self.grid`, in the compute dtype."""
        dtype = jnp.dtype(self.config.dtype)
        grid = self.patch_embed.grid(*images.shape[1:3])
        x = self.patch_embed(images.astype(dtype), train=train)
        return x + self.resized(positions, self.grid, grid).astype(dtype)

    def start(
        self, images: Float[Array, "b h w c"], *, train: bool, key: Key[Array, ""] | None
    ) -> TokenSet:
        """The tokens with which the walk begins; here those of `embed`."""
        return start_tokens(
            self.embed(images, train=train),
            prefix=self.prefix,
            grid=self.patch_embed.grid(*images.shape[1:3]),
            train=train,
            key=key,
            places=self.reducer.backbone.rotary,
        )

    def walked_stages(self) -> Sequence[Sequence[Block]]:
        """The blocks of each stage as a pass walks them: `stages`, or what goes around them."""
        return self.stages

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits, and of `Outputs` the features, auxiliary logits and `aux` of the network."""
        raise NotImplementedError

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        reduction: dict | None = None,
        logits_only: bool = False,
    ) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits and everything else of one pass.

        Args:
          images: normalised, channels last.
          train: a training pass: stochastic depth, batch statistics, auxiliary heads, the reducer's
            losses.
          key: where everything random of the pass comes from; None switches it off.
          reduction: settings of the reducer for this pass, by field.
          logits_only: of the pass only the logits and the token maps are wanted: in inference the
            last block then computes the tokens that the head reads, and no others, and `Outputs`
            has the features of these.
        """
        reducer = self.reducer.override(**(reduction or {}))
        tokens = self.start(images, train=train, key=key)
        reads = self.read_tokens if logits_only and not train else None
        walked = walk(self.walked_stages(), tokens, reducer, self.downsamples, reads)
        logits, out = self.classify(reducer.as_pooled(walked.tokens).first(reads))
        maps = stage_maps(walked.ends) if len(walked.ends) > 1 else {}
        return logits, dataclasses.replace(
            out,
            token_maps=walked.token_maps,
            aux_logits=out.aux_logits | reducer.aux_logits(walked.tokens) if train else {},
            losses=reducer.losses(walked.tokens) if train else {},
            aux={**maps, **out.aux, **reducer.aux(walked.tokens)},
            prefix=tokens.prefix + out.features.shape[1] - walked.tokens.x.shape[1],
            grid=tokens.grid,
        )
