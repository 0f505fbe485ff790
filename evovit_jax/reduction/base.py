"""The interface between backbones and token reduction: what every reducer may look at and change.

A backbone walks its blocks and calls the reducer at fixed points; it knows nothing of any paper.
`Reducer` itself reduces nothing: it is the dense network, and the base class of every method.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction.attention_request import (
    CLASS_ROW,
    NOTHING_ASKED,
    AttentionRequest,
    AttentionView,
)
from evovit_jax.reduction.card import Card
from evovit_jax.reduction.knob import Knob
from evovit_jax.reduction.map_blocks import MapBlocks
from evovit_jax.reduction.schedule import Changes, Timeline, falling_keep_rate
from evovit_jax.reduction.tokens import TokenSet
from evovit_jax.reduction.typed_fields import checked

Batches = Iterable[tuple[Float[Array, "b h w c"], Int[Array, " b"]]]  # normalised; with labels


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What a reducer may know of its backbone when it is made.

    Attributes:
      depth: number of blocks, over all stages.
      dim: width of the tokens in each stage.
      heads: attention heads of each stage's blocks.
      grid: (rows, columns) of patch tokens that the backbone was made for; a call may have more.
      prefix: number of class tokens and registers.
      stage_depths: blocks of each stage; one entry in a flat network.
      key_dim: width of a head's keys; None for the tokens' width over the number of heads.
      classes: size of the network's logits.
      stride: every how many rows and columns of a pyramid's stage the next one has.
      rotary: whether attention asks for the place of each token in every block.
      scores: what its attention can rank tokens by (`AttentionRequest.score`), the default first;
        None for the attention of its class token, if it has one.
      map_blocks: of what blocks it is made that need a whole map; None where tokens may leave.
      pools_patches: whether the patch tokens are classified, and not the class token alone.
    """

    depth: int
    dim: tuple[int, ...]
    heads: tuple[int, ...]
    grid: tuple[int, int]
    prefix: int
    stage_depths: tuple[int, ...]
    key_dim: int | None = None
    classes: int = 1
    stride: int = 1
    rotary: bool = False
    scores: tuple[str, ...] | None = None
    map_blocks: MapBlocks | None = None
    pools_patches: bool = False

    @property
    def ranking(self) -> tuple[str, ...]:
        """What tokens can be ranked by, the default first."""
        if self.scores is None:
            return ("class",) if self.prefix else ()
        return self.scores

    @property
    def key_dims(self) -> tuple[int, ...]:
        """Width of a head's keys in each stage."""
        own = (dim // heads for dim, heads in zip(self.dim, self.heads, strict=True))
        return tuple(own) if self.key_dim is None else (self.key_dim,) * len(self.dim)

    @property
    def is_pyramid(self) -> bool:
        """Whether tokens are subsampled between stages."""
        return len(self.stage_depths) > 1

    @property
    def stage_starts(self) -> tuple[int, ...]:
        """The first block of each stage."""
        return tuple(itertools.accumulate(self.stage_depths[:-1], initial=0))

    def stage(self, block: int) -> int:
        """The number of the stage of `block`."""
        return sum(start <= block for start in self.stage_starts) - 1

    def ends_stage(self, block: int) -> bool:
        """Whether the tokens are subsampled after `block`."""
        return block + 1 in self.stage_starts


@dataclasses.dataclass(frozen=True)
class Fields:
    """The settings of a reducer: subclasses add fields and check them in `__post_init__`."""

    def check(self, backbone: Backbone) -> None:
        """Refuses, with a UserError, settings that do not fit a network."""
        del backbone


class Reducer(nnx.Module):
    """Looks at, and replaces, the token set at fixed points of a backbone. This one never does.

    A method subclasses it, overrides the hooks that it needs, and declares its settings in a
    nested frozen dataclass `Fields`. Whatever must last from one hook to the next travels in the
    token set (`scores`, `sizes`, `mask`, `aside`), never in the module: a module holds parameters
    and settings only.
    """

    Fields = Fields
    # What documents say of it, each method its own; and what makes it cheaper or dearer.
    card: Card | None = None
    knob: Knob | None = None
    # What to tell someone who asks for it in a pyramid; None where the method works in one.
    not_in_pyramids: str | None = "it is defined for networks that keep their resolution"
    # Whether every place of a map has its token whenever a block mixes places.
    keeps_map = False
    # Whether it looks at the class token's attention, or at the score in its place where it has a
    # field of that name.
    needs_class_token = False
    # Whether each token that it makes has the place of an input token, or none on purpose.
    keeps_places = True
    # Whether its choices hang on what a block makes of the patches: the last one then computes them
    # all, even where only the class token is wanted.
    reads_patches_of_last_block = False
    # Names of what `losses` and `aux_logits` return, and of `teacher_losses`: the losses against a
    # teacher, the network without reduction, that its published recipe has.
    loss_names: tuple[str, ...] = ()
    teacher_loss_names: tuple[str, ...] = ()
    # Fields that the parameters' shapes depend on: they cannot change for a call.
    fixed_fields: tuple[str, ...] = ()
    # Whether it runs on images of another grid than the network was made for.
    any_grid = True
    # Fields that belong to the weights: with other values they make another network.
    trained_settings: tuple[str, ...] = ()
    # How its parameters are called in published checkpoints: (pattern, replacement) of the whole
    # PyTorch name without "reducer."; what no pattern matches has the same name there.
    torch_names: tuple[tuple[str, str], ...] = ()
    # The config's durations that `schedule` reads.
    durations: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone, fields: Fields, *, rngs: nnx.Rngs):
        del rngs  # for subclasses with parameters
        if backbone.map_blocks is not None:
            if not self.keeps_map:
                backbone.map_blocks.refuse(type(self).__name__)
        elif backbone.is_pyramid and self.not_in_pyramids:
            raise UserError(
                f"reduction {type(self).__name__} does not run inside a pyramid network: "
                f"{self.not_in_pyramids}"
            )
        has_score = backbone.ranking if hasattr(fields, "score") else "class" in backbone.ranking
        if self.needs_class_token and not has_score:
            raise UserError(
                f"reduction {type(self).__name__} ranks tokens by class attention, and this "
                "network has no class token"
            )
        if backbone.rotary and not self.keeps_places:
            raise UserError(
                f"reduction {type(self).__name__} mixes tokens into ones that have no place, and "
                "this network turns queries and keys by their places (rotary positions); use one "
                "that keeps or merges tokens, such as tome or topk"
            )
        fields.check(backbone)
        self.backbone = backbone
        self.fields = fields

    @classmethod
    def schedule(cls, fields: Fields, timeline: Timeline) -> Changes:
        """How a training changes the settings, which are `fields` in the end.

        By default a keep rate falls from 1 to its value, where `durations` are given.

        Raises:
          UserError: a duration is given that these settings have no use for.
        """
        return falling_keep_rate(getattr(fields, "keep_rate", None), cls.fixed_fields, timeline)

    def override(self, **changes: Any) -> "Reducer":
        """This reducer, same parameters, with other settings for a call.

        Raises:
          UserError: for a field that the method does not have, a value that it refuses, or one
            that does not fit the network.
        """
        if not changes:
            return self
        changes = checked(f"reduction {type(self).__name__}", type(self.fields), changes)
        for name in changes:
            if name in self.fixed_fields and changes[name] != getattr(self.fields, name):
                raise UserError(
                    f"reduction {type(self).__name__} has parameters for each of its {name}; "
                    f"make the model with {name}={changes[name]!r}, it cannot change for a call"
                )
        fields = dataclasses.replace(self.fields, **changes)
        fields.check(self.backbone)
        graphdef, state = nnx.split(self)
        other = nnx.merge(graphdef, state)
        other.fields = fields
        return other

    def class_row(self) -> AttentionRequest:
        """What asks for the scores of tokens: class attention, or what stands in its place."""
        score = getattr(self.fields, "score", None) or self.backbone.ranking[0]
        return dataclasses.replace(CLASS_ROW, score=score)

    def start(self, tokens: TokenSet) -> TokenSet:
        """Called once, before the first block."""
        return tokens

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Called before block number `block` (0 the first)."""
        del block
        return tokens

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """What to compute in the attention of `block`, and what to show of it."""
        del block, tokens
        return NOTHING_ASKED

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Called between attention (residual added) and feed-forward of `block`."""
        del block, attention
        return tokens

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Called after the feed-forward of `block`."""
        del block
        return tokens

    def subsample_request(self, stage: int, tokens: TokenSet) -> AttentionRequest:
        """What to show of the attention that subsamples the tokens after stage `stage`."""
        del stage, tokens
        return NOTHING_ASKED

    def subsample(
        self, tokens: TokenSet, attention: AttentionView, stride: int, *, stage: int
    ) -> TokenSet:
        """Called when the backbone subsamples its tokens, after stage number `stage`.

        `tokens` is still the full raster `tokens.grid`; the backbone then replaces `x`, `grid` and
        `source` by those of every `stride`-th row and column. The reducer does so with what is its
        own. The attention's queries are the class tokens and the chosen ones, its keys all tokens;
        nothing is shown of it where a network subsamples without attention, as PiT does.
        """
        del attention, stride, stage
        return tokens

    def finish(self, tokens: TokenSet) -> TokenSet:
        """Called once, after the last block, before the final norm."""
        return tokens

    def as_pooled(self, tokens: TokenSet) -> TokenSet:
        """The finished set as the last norm, the pooling and the heads see it."""
        return tokens

    def losses(self, tokens: TokenSet) -> dict[str, Float[Array, ""]]:
        """Extra training losses by name (`loss_names`), unweighted, from the finished tokens."""
        del tokens
        return {}

    def aux_logits(self, tokens: TokenSet) -> dict[str, Float[Array, "b k"]]:
        """Logits by name that learn the labels beside the network's, in training passes."""
        del tokens
        return {}

    def calibrated(self, model: nnx.Module, batches: Batches) -> "Reducer":
        """This reducer with constants that it finds by looking at images.

        `model` was trained without reduction, its reducer is not called; `batches` are of one size,
        and may be read several times. A UserError says that there is nothing to find.
        """
        del model, batches
        raise UserError(f"reduction {type(self).__name__} has no constants that images decide on")

    def teacher_losses(
        self,
        logits: Float[Array, "b k"],
        out: Any,
        teacher_logits: Float[Array, "b k"],
        teacher: Any,
    ) -> dict[str, Float[Array, ""]]:
        """Extra training losses by name, unweighted, against a frozen unreduced teacher's pass.

        `out` and `teacher` are the `Outputs` of the training pass and of the teacher's inference.
        A method that has such losses names them in `teacher_loss_names`.
        """
        del logits, out, teacher_logits, teacher
        return {}

    def aux(self, tokens: TokenSet) -> dict[str, Array]:
        """What losses that need a teacher, or analyses, read of the finished token set.

        By default `sizes`, float32 `[b, n]`, where tokens have sizes.
        """
        return {} if tokens.sizes is None else {"sizes": tokens.sizes}


def check_rate(name: str, value: Any) -> None:
    """Raises UserError unless `value`, or each of its members, is in (0, 1]."""
    for rate in value if isinstance(value, tuple | list) else (value,):
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not number or not 0 < rate <= 1:
            raise UserError(f"{name} must be a number in (0, 1], got {rate!r}")


def check_blocks(name: str, blocks: Sequence[int], depth: int) -> None:
    """Raises UserError unless `blocks` are increasing block numbers of a network of `depth`."""
    if not blocks:
        raise UserError(f"{name} must name one block or more of 0..{depth - 1}")
    rising = all(a < b for a, b in itertools.pairwise(blocks))
    if not rising or not all(isinstance(i, int) and 0 <= i < depth for i in blocks):
        raise UserError(
            f"{name} must be increasing block numbers in 0..{depth - 1} (colons between them), "
            f"got {':'.join(map(str, blocks))}"
        )


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raises UserError unless `value` is one of the `known` words."""
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_score(score: str | None, backbone: Backbone) -> None:
    """Raises UserError unless `score` is None or one that the network's attention can give."""
    if score is not None and score not in backbone.ranking:
        raise UserError(
            f"score {score!r} is not to be had in this network: it has "
            f"{', '.join(backbone.ranking) or 'none'}"
        )
