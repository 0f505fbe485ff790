"""What becomes of an image's tokens in a network: where they are, and what is attended to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from evovit_jax.data import on_device
from evovit_jax.inference import compiled
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models.token_model import TokenModel
from evovit_jax.models.variables import Skeleton
from evovit_jax.parallel import inference_program
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet, group_sizes, spread
from evovit_jax.reduction.walk import Block, walk


@dataclasses.dataclass(frozen=True)
class TokenHistory:
    """One image in one network.

    Attributes:
      logits: float32 `[k]`.
      maps: the source map of each block, N input tokens with the class tokens first.
      grid: (rows, columns) of the patch tokens.
      attention: of each block how much the class token looks at every patch, float32, the mean over
        heads; None where the network has no class token there. What it gives to a token is shared
        out equally among the patches that the token holds.
    """

    logits: Float[np.ndarray, " k"]
    maps: Int[np.ndarray, "blocks N"]
    grid: tuple[int, int]
    attention: tuple[Float[np.ndarray, " p"] | None, ...] = ()

    @property
    def prefix(self) -> int:
        """How many of the input tokens are no patches."""
        return self.maps.shape[1] - self.grid[0] * self.grid[1]


class Watched:
    """A block that notes down the class token's attention to every input token."""

    def __init__(self, block: Block, noted: list[Float[Array, "b N"] | None]):
        self._block, self._noted = block, noted

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[TokenSet, AttentionView]:
        """The block's own, and what was asked for: no more, since reducers go by what they see."""
        if request.look_ahead is not None:  # the block is called again, and mixes tokens only then
            return self._block.attend(block, tokens, request)
        with_row = dataclasses.replace(request, needs=request.needs | {"class_row"}, score="class")
        after, view = self._block.attend(block, tokens, with_row)
        row = view.class_row if request.weights is None else request.weights[:, :, 0]
        has_row = tokens.prefix > 0 and row is not None
        self._noted.append(attention_to_inputs(row, tokens.source) if has_row else None)
        if "class_row" not in request.needs:
            return after, dataclasses.replace(view, class_row=None)
        return (
            (after, view)
            if request.score == "class"
            else self._block.attend(block, tokens, request)
        )

    def feed_forward(self, block: int, tokens: TokenSet) -> TokenSet:
        """The block's own."""
        return self._block.feed_forward(block, tokens)


def attention_to_inputs(
    row: Float[Array, "b h n"], source: Int[Array, "b N"]
) -> Float[Array, "b N"]:
    """The mean over heads, what a token gets in equal parts for the input tokens that it holds."""
    sizes = group_sizes(source, row.shape[2]).astype(jnp.float32)
    return spread((row.mean(axis=1) / jnp.maximum(sizes, 1))[..., None], source)[..., 0]


def watched_pass(
    model: nnx.Module, images: Float[Array, "b h w c"]
) -> tuple[Array, tuple[tuple[Array, ...], list[Float[Array, "b N"] | None]]]:
    """Logits; the source map of each block, and the class token's attention in each.

    There are no attentions where the network has no class token.
    """
    if not isinstance(model, TokenModel) or "class" not in model.reducer.backbone.ranking:
        logits, out = model(images)
        return logits, (out.token_maps[:-1], [])
    noted: list[Float[Array, "b N"] | None] = []
    stages = [[Watched(block, noted) for block in stage] for stage in model.walked_stages()]
    tokens = model.start(images, train=False, key=None)
    walked = walk(stages, tokens, model.reducer, model.downsamples)
    logits, _ = model.classify(model.reducer.as_pooled(walked.tokens))
    return logits, (walked.token_maps[:-1], noted)


def observer(prepared: ReadyModel) -> Callable[[UInt8[np.ndarray, "s s 3"]], TokenHistory]:
    """A function from the pixels that a model sees to the history of their tokens.

    It is compiled at its first call; the model must have tokens.
    """
    graphdef, fold = compiled.folded(prepared.model)
    transform, grid = prepared.transform, prepared.model.grid

    def look(state: Any, pixels: Array) -> tuple[Array, Any]:
        images = on_device.normalize(pixels, transform.mean, transform.std)
        return watched_pass(nnx.merge(graphdef, state), images)

    state = fold(*Skeleton.variables(prepared.model))
    if prepared.classes is not None:
        look = prepared.classes.in_place_of_head(look)
        state = (state, prepared.classes.embeddings)
    program = inference_program.jitted(look)

    def observe(pixels: UInt8[np.ndarray, "s s 3"]) -> TokenHistory:
        logits, (maps, noted) = jax.device_get(program(state, pixels[None]))
        maps = np.stack([token_map[0] for token_map in maps])
        first = maps.shape[1] - grid[0] * grid[1]
        attention = tuple(None if one is None else one[0, first:] for one in noted)
        return TokenHistory(logits[0], maps, grid, attention)

    return observe
