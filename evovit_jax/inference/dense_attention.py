"""The class token's attention to every patch in a network without its reduction."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from evovit_jax.data import on_device
from evovit_jax.inference import compiled
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.inference.token_history import attention_to_inputs
from evovit_jax.models.variables import Skeleton
from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone, Fields, Reducer
from evovit_jax.reduction.tokens import TokenSet

SEEN = "class_attention"


class Watching(Reducer):
    """Reduces nothing, and adds up what the class token attends to.

    Without a class token it is the network's own score in its place, `Backbone.ranking`.
    """

    not_in_pyramids = None
    keeps_map = True

    def __init__(self, backbone: Backbone):
        super().__init__(backbone, Fields(), rngs=nnx.Rngs(0))

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """The scores of every block."""
        del block, tokens
        return self.class_row()

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Adds the mean over the heads; what a token has is shared by the patches that it holds."""
        del block
        if attention.class_row is None:
            return tokens
        shared = attention_to_inputs(attention.class_row, tokens.source)
        return tokens.put_aside(**{SEEN: tokens.aside.get(SEEN, 0.0) + shared})

    def aux(self, tokens: TokenSet) -> dict[str, Array]:
        """float32 `[b, p]`, the sum over the blocks, of the patches of the input."""
        if SEEN not in tokens.aside:
            return {}
        return {SEEN: tokens.aside[SEEN][:, tokens.prefix :]}


def score_name(model: nnx.Module) -> str | None:
    """What a network's tokens are ranked by, "class" for class attention; None for nothing."""
    reducer = getattr(model, "reducer", None)
    ranking = reducer.backbone.ranking if isinstance(reducer, Reducer) else ()
    return ranking[0] if ranking else None


def program(prepared: ReadyModel) -> tuple[Callable[[Any, Array], Array], Any] | None:
    """`look(state, pixels)`, not jitted yet, and the state that it takes.

    `look` gives float32 `[b, p]`: the attention that each patch gets in the network without its
    reduction, the mean over heads and blocks but for a factor. None where the network has none.
    """
    if score_name(prepared.model) is None:
        return None
    dense = nnx.merge(*nnx.split(prepared.model))
    dense.reducer = Watching(prepared.model.reducer.backbone)
    graphdef, fold = compiled.folded(dense)
    transform, side = prepared.transform, prepared.transform.image_size

    def seen(state: Any, images: Array) -> dict[str, Array]:
        aux = nnx.merge(graphdef, state)(images)[1].aux
        return {name: aux[name] for name in (SEEN,) if name in aux}

    def look(state: Any, pixels: Array) -> Array:
        images = on_device.normalize(pixels, transform.mean, transform.std)
        part = functools.partial(seen, state)
        return compiled.chunked(part, compiled.default_chunk(side))(images)[SEEN]

    state = fold(*Skeleton.variables(dense))
    # As many as there are devices, which may share a batch.
    images = jax.ShapeDtypeStruct((jax.device_count(), side, side, 3), np.float32)
    return (look, state) if SEEN in jax.eval_shape(seen, state, images) else None
