"""IA-RED2: before each group of blocks an interpreter decides which tokens go on.

Pan et al., "IA-RED2: Interpretability-Aware Redundancy Reduction for Vision Transformers", NeurIPS
2021 (arXiv:2106.12620). The interpreter of a group compares the class token
with every token: of the normalised tokens (no scale, no shift) a query of the class token and keys
of all, in 6 heads, `p = mean over heads of sigmoid(q k / sqrt(d))`, times what the group before
kept (Section 3.1).

By default a group keeps the `int(patches * keep_rate**k)` patches of the largest p, in raster
order, the others leave: a fixed budget, so that the shapes are. `masked=true` is the paper's
inference, in which the number depends on the image and nothing leaves: tokens with p over
`threshold` are kept, the others are zero at the group's start and neither attend nor are attended
to. With `curriculum_step=s` groups after number s keep what the group before them kept.

Training masks, too, by draws with probability p (without a key by the threshold). The paper learns
p by REINFORCE, of a reward for dropped tokens where the class is right; here the gradient goes
straight through the draw, and the loss `ratio`, `(share kept - keep_rate**k)**2`, sets the budget.

The inference equals the copy of the authors' model file in irsLu/ltrp; they published no code of
their own. US patent 12,154,307 B2 has the paper's title. Published: DeiT-S up to 1.4 times faster
at 0.7 points less.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import Located, LocatedFields
from evovit_jax.reduction.base import AttentionRequest, Backbone
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.tokens import TokenSet, ascending, keep, mask_out, top_k

HEADS = 6


@dataclasses.dataclass(frozen=True)
class IARED2Fields(LocatedFields):
    """Settings of IA-RED2 beside `keep_rate`; `locations` are the groups' first blocks.

    Attributes:
      locations: by default three groups of equal length, from block 0 on.
      masked: whether inference masks tokens by the threshold, and keeps their places.
      threshold: of p, in masked inference.
      curriculum_step: the last group that decides for itself; None for all.
    """

    masked: bool = False
    threshold: float = 0.5
    curriculum_step: int | None = None

    def blocks(self, backbone: Backbone) -> tuple[int, ...]:
        """The first block of each group."""
        if self.locations is None:
            starts = tuple(sorted({i * backbone.depth // 3 for i in range(3)}))
            return dataclasses.replace(self, locations=starts).blocks(backbone)
        return super().blocks(backbone)

    def check(self, backbone: Backbone) -> None:
        """Refuses widths that do not divide into the interpreter's heads."""
        self.blocks(backbone)
        if backbone.dim[0] % HEADS:
            raise UserError(f"ia_red2 needs tokens of a width that {HEADS} heads divide")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["policies", "probabilities"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Decisions:
    """What the groups so far kept, class tokens first.

    Attributes:
      policies: bool `[b, n]` of each group.
      probabilities: float32 `[b, n]` of each group, zero for what the group before dropped.
    """

    policies: tuple[Bool[Array, "b n"], ...] = ()
    probabilities: tuple[Float[Array, "b n"], ...] = ()


class Interpreter(nnx.Module):
    """How much each token has to do with the class token, in (0, 1)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(stddev=0.02)
        # Queries, keys, and values that nothing reads, as in the published model file.
        self.qk = nnx.Linear(dim, 3 * dim, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n"]:
        """The mean over heads of sigmoids."""
        b, n, d = x.shape
        x = x.astype(jnp.float32)
        x = (x - x.mean(axis=-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        q, k, _ = jnp.moveaxis(self.qk(x).reshape(b, n, 3, HEADS, d // HEADS), 2, 0)
        logits = jnp.einsum("bhc,bnhc->bnh", q[:, 0], k, precision="highest")
        return jax.nn.sigmoid(logits * (d // HEADS) ** -0.5).mean(axis=-1)


class IARED2(Located):
    """Pruning by interpreters before groups of blocks."""

    card = Card(
        title="IA-RED2",
        paper="2106.12620",
        summary="interpreters compare with the class token before groups of blocks",
        training=NEEDED,
        score="learned",
        equal_to=("irsLu/ltrp",),
        notes="no licence; US 12,154,307 B2 has the paper's title",
    )
    Fields = IARED2Fields
    needs_class_token = True
    loss_names = ("ratio",)
    fixed_fields = ("locations",)
    torch_names = ((r"interpreters\.(\d+)\.(.*)", r"groups.\1.agent.\2"),)

    def __init__(self, backbone: Backbone, fields: IARED2Fields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        self.interpreters = nnx.List(
            Interpreter(backbone.dim[0], rngs=rngs) for _ in self.locations
        )

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Decides; the tokens leave, or are masked."""
        location = self.location(block)
        if location is None:
            return tokens
        if tokens.train or self.fields.masked:
            return self.mask(location, block, tokens)
        if not self.reduces(block, tokens):
            return tokens
        p = self.interpreters[location](tokens.x)[:, tokens.prefix :]
        _, index = top_k(p, self.count(location, tokens))
        return keep(tokens, ascending(index), block)

    def mask(self, location: int, block: int, tokens: TokenSet) -> TokenSet:
        """Zeroes what the group does not keep; a training draws what that is."""
        shape, fields = tokens.x.shape[:2], self.fields
        so_far = tokens.aside.get("decisions", Decisions())
        before = so_far.policies[-1] if so_far.policies else jnp.ones(shape, bool)
        seen = tokens.x * before[..., None].astype(tokens.x.dtype)
        p = self.interpreters[location](seen) * before.astype(jnp.float32)
        policy = p > fields.threshold
        if tokens.train and tokens.key is not None:
            # Blocks take the numbers up to twice the depth for stochastic depth.
            key = jax.random.fold_in(tokens.key, 2 * self.backbone.depth + location)
            policy = jax.random.bernoulli(key, p)
        policy |= (jnp.arange(shape[1]) < tokens.prefix)[None]
        if fields.curriculum_step is not None and location > fields.curriculum_step:
            policy = before
        factor = policy.astype(jnp.float32)
        if tokens.train:
            factor = factor + (p - jax.lax.stop_gradient(p))
        tokens = mask_out(tokens, policy, block)
        decisions = Decisions((*so_far.policies, policy), (*so_far.probabilities, p))
        x = tokens.x * factor[..., None].astype(tokens.x.dtype)
        return tokens.replace(x=x).put_aside(decisions=decisions)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Attention among what is kept, where tokens are masked."""
        del block
        if "decisions" not in tokens.aside:
            return AttentionRequest()
        policy = tokens.aside["decisions"].policies[-1]
        return AttentionRequest(normalise=functools.partial(among, policy=policy))

    def losses(self, tokens: TokenSet) -> dict[str, Float[Array, ""]]:
        """`ratio`: how far the shares of tokens expected are from the keep rates."""
        p = tokens.aside["decisions"].probabilities
        misses = [
            jnp.square(each[:, tokens.prefix :].mean(axis=1) - self.share(i)).mean()
            for i, each in enumerate(p)
        ]
        return {"ratio": sum(misses) / len(misses)}

    def aux(self, tokens: TokenSet) -> dict[str, Array]:
        """Where tokens are masked: `policies` and `probabilities`, float32 `[b, groups, n]`.

        `flops_share` `[b]` is the share of tokens kept, class tokens counted, over all blocks.
        """
        if "decisions" not in tokens.aside:
            return {}
        made = tokens.aside["decisions"]
        policies = jnp.stack(made.policies, axis=1).astype(jnp.float32)
        ends = jnp.asarray((*self.locations, self.backbone.depth), jnp.float32)
        dropped = (1 - policies.mean(axis=2)) * jnp.diff(ends)[None] / self.backbone.depth
        return {
            "policies": policies,
            "flops_share": 1 - dropped.sum(axis=1),
            "probabilities": jnp.stack(made.probabilities, axis=1),
        }


def among(logits: Float[Array, "b h n n"], policy: Bool[Array, "b n"]) -> Float[Array, "b h n n"]:
    """The softmax among the tokens that `policy` keeps; the rows of the others are zero."""
    weights = jax.nn.softmax(jnp.where(policy[:, None, None], logits, -jnp.inf), axis=-1)
    return jnp.where(policy[:, None, :, None], weights, 0.0)
