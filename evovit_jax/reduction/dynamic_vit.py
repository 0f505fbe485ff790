"""DynamicViT: small networks decide before a few blocks which tokens to drop.

Rao et al., "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS
2021 (arXiv:2106.02034). Before each location a predictor gives every patch token two
probabilities, keep and drop, from its own features and the mean of the tokens kept so far
(Section 3.2, equations 2 to 5).

Inference: the `int(patches * keep_rate**k)` tokens of the largest keep probability stay, the others
leave the sequence; patches are all of the image's (137, 96 and 67 of 196 at keep rate 0.7).

Training (Section 3.3): all tokens stay. A decision is a hard Gumbel-softmax sample (temperature 1,
straight-through gradient) times the decision before it, and attention is
`(e * m + eps / n) / (sum(e * m) + eps)` with `e = exp(logit - max)`, `m` the key's decision, 1 for
a token's attention to itself, eps 1e-6 (equations 10, 11; the official code's eps). It is so in
every block, also before the first location. Without a key the decision is the more probable class.

Losses (Section 3.4): `ratio`, the mean over locations and images of
`(share of tokens kept - keep_rate**k)**2`; against the unpruned network with the pretrained weights
as teacher, `distill_logits` (Kullback-Leibler) and `distill_tokens` (on the tokens that are kept:
mean squared error of features, or Kullback-Leibler where patch tokens have logits, LV-ViT).

Published recipe: 30 epochs from pretrained weights, AdamW, learning rate 1e-3 to 1e-6, batch 1024,
weights cross entropy 1, ratio 2, distill_logits 0.5, distill_tokens 0.5; the backbone frozen for 5
epochs, then at 0.01 of the rate; class token and positions always frozen. DeiT-S at 0.7: 79.32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.hardware.gelu import gelu
from evovit_jax.hardware.platforms import by_platform
from evovit_jax.reduction.at_locations import Located, LocatedFields
from evovit_jax.reduction.attention_request import softmax_among
from evovit_jax.reduction.base import NOTHING_ASKED, AttentionRequest, Backbone
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.tokens import TokenSet, keep, mask_out, top_k

EPS = 1e-6
KEEP = 0  # the class of a predictor that means keep


class Predictor(nnx.Module):
    """Log-probabilities of keeping and of dropping each token (equations 2 to 5).

    They are float32, and the layers before them of the tokens' dtype.
    """

    def __init__(self, dim: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            init = nnx.initializers.truncated_normal(stddev=0.02)
            return nnx.Linear(inputs, outputs, kernel_init=init, rngs=rngs)

        self.norm = nnx.LayerNorm(dim, epsilon=epsilon, rngs=rngs)
        self.embed = linear(dim, dim)
        self.score = nnx.List(
            [linear(dim, dim // 2), linear(dim // 2, dim // 4), linear(dim // 4, 2)]
        )

    def __call__(
        self, x: Float[Array, "b n d"], kept: Float[Array, "b n"]
    ) -> Float[Array, "b n 2"]:
        """The log-probabilities; `kept` is 1 for the patches that are still in, of all `x`."""
        half = self.embed.kernel.shape[1] // 2
        x = self.norm(x.astype(jnp.float32)).astype(x.dtype)
        local, others = (
            gelu(affine(x, kernel, bias[None, None]))
            for kernel, bias in zip(
                jnp.split(self.embed.kernel[...], [half], axis=1),
                jnp.split(self.embed.bias[...], [half]),
                strict=True,
            )
        )
        # At least one: chance may keep none of an image's tokens (the official code's NaN).
        weights = kept / jnp.maximum(kept.sum(axis=1, keepdims=True), 1.0)
        mean = (weights[:, :, None] * others.astype(jnp.float32)).sum(axis=1)
        # The mean is multiplied once an image, not beside each of its tokens.
        of_local, of_mean = jnp.split(self.score[0].kernel[...], [half])
        shared = mean @ of_mean + self.score[0].bias[...][None]
        x = gelu(affine(local, of_local, shared[:, None]))
        for layer in self.score[1:-1]:
            x = gelu(affine(x, layer.kernel[...], layer.bias[None, None]))
        return jax.nn.log_softmax(self.score[-1](x.astype(jnp.float32)), axis=-1)


def affine(
    x: Float[Array, "b n d"], kernel: Float[Array, "d e"], bias: Float[Array, "#b #n e"]
) -> Float[Array, "b n e"]:
    """A linear layer in the dtype of what goes through it."""
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def patch_log_probs(
    predictor: Predictor, tokens: TokenSet, kept: Float[Array, "b p"]
) -> Float[Array, "b p 2"]:
    """Of the patches alone.

    On a TPU the class tokens go through it too, and count nowhere: cutting them off first would
    move every other token to another place in memory.
    """
    prefix = tokens.prefix

    def with_class_tokens(x: Array, kept: Array) -> Array:
        return predictor(x, jnp.pad(kept, ((0, 0), (prefix, 0))))[:, prefix:]

    def without(x: Array, kept: Array) -> Array:
        return predictor(x[:, prefix:], kept)

    return by_platform(tokens.x, kept, tpu=with_class_tokens, default=without)


class DynamicViT(Located):
    """Learned, image-dependent pruning."""

    card = Card(
        title="DynamicViT",
        paper="2106.02034",
        summary="small networks decide what to drop",
        training=NEEDED,
        score="learned",
        in_pyramids="ConvNeXt and Swin, where it decides between a slow and a fast path",
        equal_to=("raoyongming/DynamicViT",),
        notes="MIT",
    )
    fixed_fields = ("locations",)
    loss_names = ("ratio",)
    teacher_loss_names = ("distill_logits", "distill_tokens")
    torch_names = (
        (r"(score_predictor\.\d+)\.norm\.(.*)", r"\1.in_conv.0.\2"),
        (r"(score_predictor\.\d+)\.embed\.(.*)", r"\1.in_conv.1.\2"),
        (r"(score_predictor\.\d+)\.score\.0\.(.*)", r"\1.out_conv.0.\2"),
        (r"(score_predictor\.\d+)\.score\.1\.(.*)", r"\1.out_conv.2.\2"),
        (r"(score_predictor\.\d+)\.score\.2\.(.*)", r"\1.out_conv.4.\2"),
    )

    def __init__(self, backbone: Backbone, fields: LocatedFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        self.score_predictor = nnx.List(
            Predictor(backbone.dim[0], rngs=rngs) for _ in self.locations
        )

    def start(self, tokens: TokenSet) -> TokenSet:
        """In training, everything is kept at first."""
        if not tokens.train:
            return tokens
        return tokens.put_aside(decisions=())

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Decides; the tokens leave in inference, and are masked in training."""
        location = self.location(block)
        if location is None or not (tokens.train or self.reduces(block, tokens)):
            return tokens
        log_probs = patch_log_probs(self.score_predictor[location], tokens, decided(tokens))
        if tokens.train:
            return self._mask(location, block, tokens, log_probs)
        _, index = top_k(log_probs[:, :, KEEP], self.count(location, tokens))
        return keep(tokens, index, block)

    def _mask(
        self, location: int, block: int, tokens: TokenSet, log_probs: Float[Array, "b p 2"]
    ) -> TokenSet:
        decision = decide(self, location, tokens, log_probs) * decided(tokens)
        valid = jnp.pad(decision > 0.5, ((0, 0), (tokens.prefix, 0)), constant_values=True)
        tokens = mask_out(tokens, valid, block)
        return tokens.put_aside(decisions=(*tokens.aside["decisions"], decision))

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """In training, attention to what is kept."""
        del block
        if not tokens.train:
            return NOTHING_ASKED
        policy = jnp.pad(decided(tokens), ((0, 0), (tokens.prefix, 0)), constant_values=1.0)
        return AttentionRequest(normalise=lambda logits: masked_softmax(logits, policy))

    def losses(self, tokens: TokenSet) -> dict[str, Float[Array, ""]]:
        """`ratio`: how far the shares of tokens kept are from the keep rates."""
        return {"ratio": ratio_loss(self, tokens)}

    def teacher_losses(
        self,
        logits: Float[Array, "b k"],
        out: Any,
        teacher_logits: Float[Array, "b k"],
        teacher: Any,
    ) -> dict[str, Float[Array, ""]]:
        """`distill_logits` and `distill_tokens`; the teacher is the network without reduction.

        The logits are those of inference: a distilled network's are the mean of its two heads'.
        """
        if "dist" in out.aux_logits:
            logits = (logits + out.aux_logits["dist"]) / 2
        kept = out.aux["decisions"][:, -1] > 0.5
        if "patch_logits" in out.aux:  # LV-ViT, which has labels on patches
            teacher_logits = teacher.aux["class_logits"]
            of_tokens = divergence(out.aux["patch_logits"], teacher.aux["patch_logits"])
        else:
            pairs = (o.features[:, self.backbone.prefix :] for o in (out, teacher))
            student, wanted = (features.astype(jnp.float32) for features in pairs)
            of_tokens = jnp.square(student - wanted).mean(axis=-1)
        of_tokens = jnp.where(kept, of_tokens, 0.0).sum() / jnp.maximum(
            kept.sum(dtype=jnp.float32), 1.0
        )
        return {
            "distill_logits": divergence(logits, teacher_logits).mean(),
            "distill_tokens": of_tokens,
        }

    def aux(self, tokens: TokenSet) -> dict[str, Array]:
        """In training `decisions`, float32 `[b, locations, p]`: 1 where a token is kept."""
        if not tokens.train:
            return {}
        return {"decisions": jnp.stack(tokens.aside["decisions"], axis=1)}


def decided(tokens: TokenSet) -> Float[Array, "b p"]:
    """The last decision of a training pass, 1 where a patch token is kept; else 1 everywhere."""
    decisions = tokens.aside.get("decisions")
    return decisions[-1] if decisions else jnp.ones((tokens.x.shape[0], tokens.patches))


def decide(
    reducer: Located, location: int, tokens: TokenSet, log_probs: Float[Array, "b p 2"]
) -> Float[Array, "b p"]:
    """The decision of a training pass at a location, 1 where a token is kept."""
    key = tokens.key
    if key is not None:
        # Blocks take the numbers up to twice the depth for stochastic depth.
        key = jax.random.fold_in(key, 2 * reducer.backbone.depth + location)
    return sample(log_probs, key)[:, :, KEEP]


def ratio_loss(reducer: Located, tokens: TokenSet) -> Float[Array, ""]:
    """How far the shares of tokens kept are from those wanted, the mean of squares."""
    misses = [
        jnp.square(decision.mean(axis=1) - reducer.share(location)).mean()
        for location, decision in zip(
            range(len(reducer.locations)), tokens.aside["decisions"], strict=True
        )
    ]
    return sum(misses) / len(misses)


def divergence(student: Float[Array, "*b k"], teacher: Float[Array, "*b k"]) -> Float[Array, "*b"]:
    """Kullback-Leibler divergence of the student's distribution from the teacher's."""
    student, teacher = (jax.nn.log_softmax(x, axis=-1) for x in (student, teacher))
    return optax.losses.kl_divergence_with_log_targets(student, teacher)


def sample(log_probs: Float[Array, "b p 2"], key: jax.Array | None) -> Float[Array, "b p 2"]:
    """One-hot decisions with the gradient of the softmax (straight-through Gumbel-softmax).

    Without a key no noise is added: the decision is the more probable class.
    """
    if key is not None:
        log_probs = log_probs + jax.random.gumbel(key, log_probs.shape)
    soft = jax.nn.softmax(log_probs, axis=-1)
    hard = jax.nn.one_hot(soft.argmax(axis=-1), 2)
    return hard + (soft - jax.lax.stop_gradient(soft))


def masked_softmax(
    logits: Float[Array, "b h n n"], policy: Float[Array, "b n"]
) -> Float[Array, "b h n n"]:
    """Softmax over the keys that `policy` keeps, and each token over itself (equation 11)."""
    own = jnp.eye(logits.shape[-1])[None, None]
    allowed = policy[:, None, None, :]
    return softmax_among(logits, allowed + (1 - allowed) * own, EPS)
