"""Top-K: keeps the tokens that the class token attends to most, and drops the others.

The plain baseline of Haurum et al., "Which Tokens to Use? Investigating Token Reduction in Vision
Transformers", ICCVW 2023 (arXiv:2308.04657), which it finds hard to beat. The score is EViT's
(class attention, the mean over heads), between attention and feed-forward. The k-th location
leaves `int(patches * keep_rate**k)` tokens, patches being all of the image's: 137, 96 and 67 of
196 at keep rate 0.7. In a pyramid, of the stage's patches, and the tokens that left come back as
they were at the end of the stage: a subsampling needs the whole grid.
"""

from evovit_jax.reduction.at_locations import RankedFields
from evovit_jax.reduction.base import NOTHING_ASKED, AttentionRequest, AttentionView
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.in_pyramid import WithinStages
from evovit_jax.reduction.tokens import TokenSet, keep, top_k


class TopK(WithinStages):
    """Pruning by class attention."""

    card = Card(
        title="Top-K",
        paper="2308.04657",
        summary="keeps what the class token attends to, drops the rest",
        training=OPTIONAL,
        score="class attention",
        in_pyramids="with a class token",
        equal_to=("JoakimHaurum/TokenReduction",),
        notes="MIT",
    )
    Fields = RankedFields
    needs_class_token = True

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention where tokens leave."""
        return self.class_row() if self.reduces(block, tokens) else NOTHING_ASKED

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Keeps the tokens of the largest class attention."""
        count = self.count(self.location(block), tokens)
        _, index = top_k(attention.patch_scores(tokens.prefix), count)
        return keep(tokens, index, block)
