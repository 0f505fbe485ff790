"""Small models built as those of other libraries are: the same modules under the same names."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

SIDE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 24, 4, 24, 3, 3, 5


def _norm(rngs: nnx.Rngs, epsilon: float = 1e-6) -> nnx.LayerNorm:
    """With a scale and a shift of its own, so that no two norms can be taken for another."""
    return nnx.LayerNorm(
        WIDTH,
        epsilon=epsilon,
        scale_init=nnx.initializers.normal(1.0),
        bias_init=nnx.initializers.normal(0.5),
        rngs=rngs,
    )


def _attention(rngs: nnx.Rngs, **settings: Any) -> nnx.MultiHeadAttention:
    return nnx.MultiHeadAttention(
        HEADS,
        WIDTH,
        decode=False,
        bias_init=nnx.initializers.normal(0.5),
        rngs=rngs,
        **settings,
    )


def _mlp(rngs: nnx.Rngs, *dropout: nnx.Dropout) -> nnx.Sequential:
    exact = functools.partial(jax.nn.gelu, approximate=False)
    up, down = (nnx.Linear(*sizes, rngs=rngs) for sizes in ((WIDTH, 48), (48, WIDTH)))
    return nnx.Sequential(up, exact, *dropout, down, *dropout)


class JimmBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, dropout: float = 0.0, mask: jax.Array | None = None):
        self.attn_mask = nnx.data(mask)
        self.norm1 = _norm(rngs)
        self.attn = _attention(
            rngs, dropout_rate=dropout, broadcast_dropout=False, deterministic=False
        )
        self.norm2 = _norm(rngs)
        self.mlp = _mlp(rngs, nnx.Dropout(dropout, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.norm1(x), mask=self.attn_mask)
        return x + self.mlp(self.norm2(x))


class JimmTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, **settings: Any):
        self.blocks = nnx.Sequential(*(JimmBlock(rngs, **settings) for _ in range(DEPTH)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.blocks(x)


class JimmPool(nnx.Module):
    """Multihead attention pooling."""

    def __init__(self, rngs: nnx.Rngs):
        self.probe = nnx.Param(jax.random.normal(rngs.params(), (1, 1, WIDTH)))
        self.attn = _attention(rngs, deterministic=False)
        self.layernorm = _norm(rngs)
        self.mlp = _mlp(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        probe = jnp.tile(self.probe[...], (len(x), 1, 1))
        x = self.attn(probe, x, x, decode=False)
        return (x + self.mlp(self.layernorm(x)))[:, 0]


class JimmTower(nnx.Module):
    """The encoder inside each of jimm's models, with its blocks in a sequence."""

    def __init__(self, pooling_type: str = "CLS", pre_norm: bool = False, *, rngs, **settings):
        self.pooling_type, self.use_pre_norm = pooling_type, pre_norm
        self.patch_embeddings = nnx.Conv(
            3, WIDTH, (PATCH, PATCH), strides=(PATCH, PATCH), padding="VALID", rngs=rngs
        )
        positions = (SIDE // PATCH) ** 2
        if pooling_type == "CLS":
            self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, WIDTH)))
            positions += 1
        else:
            self._make_pool(rngs)
        self.position_embeddings = nnx.Param(
            jax.random.normal(rngs.params(), (1, positions, WIDTH))
        )
        if pre_norm:
            self.ln_pre = _norm(rngs)
        self.dropout = nnx.Dropout(settings.get("dropout", 0.0), rngs=rngs)
        self._make_blocks(rngs, settings)
        self.ln_post = _norm(rngs)

    def _make_pool(self, rngs: nnx.Rngs) -> None:
        self.MAPHead = JimmPool(rngs)

    def _make_blocks(self, rngs: nnx.Rngs, settings: dict) -> None:
        self.transformer = JimmTransformer(rngs, **settings)

    def _through_blocks(self, x: jax.Array) -> jax.Array:
        return self.transformer(x)

    def _pooled(self, x: jax.Array) -> jax.Array:
        return self.MAPHead(x)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patch_embeddings(images)
        x = x.reshape(len(x), -1, WIDTH)
        if self.pooling_type == "CLS":
            x = jnp.concatenate([jnp.tile(self.cls_token[...], (len(x), 1, 1)), x], axis=1)
        x = x + self.position_embeddings[...]
        x = self.ln_pre(x) if self.use_pre_norm else self.dropout(x)
        x = self.ln_post(self._through_blocks(x))
        return x[:, 0] if self.pooling_type == "CLS" else self._pooled(x)


@nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
def _scanned(x: jax.Array, block: JimmBlock) -> jax.Array:
    return block(x)


class ScannedJimmTower(JimmTower):
    """The same with one block that is scanned, as later versions have it."""

    def _make_pool(self, rngs: nnx.Rngs) -> None:
        self.map_head = JimmPool(rngs)

    def _make_blocks(self, rngs: nnx.Rngs, settings: dict) -> None:
        make = nnx.vmap(lambda rngs: JimmBlock(rngs, **settings), in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=DEPTH)(make)(rngs)

    def _through_blocks(self, x: jax.Array) -> jax.Array:
        return _scanned(x, self.layers)

    def _pooled(self, x: jax.Array) -> jax.Array:
        return self.map_head(x)


class JimmViT(nnx.Module):
    """A classifier."""

    def __init__(self, tower: type = JimmTower, *, rngs: nnx.Rngs, **settings: Any):
        self.encoder = tower(rngs=rngs, **settings)
        self.classifier = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.classifier(self.encoder(images))


class JimmCLIP(nnx.Module):
    """An image tower beside a text tower of the same blocks."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.vision_model = JimmTower(pre_norm=True, rngs=rngs)
        self.visual_projection = nnx.Linear(WIDTH, 8, use_bias=False, rngs=rngs)
        self.text_model = JimmTransformer(rngs, mask=jnp.tril(jnp.ones((1, 1, 6, 6))))
        self.positional_embedding = nnx.Param(jax.random.normal(rngs.params(), (6, WIDTH)))

    def encode_image(self, images: jax.Array) -> jax.Array:
        return self.visual_projection(self.vision_model(images))

    def __call__(self, images: jax.Array, words: jax.Array) -> jax.Array:
        text = self.text_model(words + self.positional_embedding[None])[:, -1]
        return self.encode_image(images) @ self.visual_projection(text).T


class BonsaiEmbeddings(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.projection = nnx.Conv(3, WIDTH, (PATCH, PATCH), strides=(PATCH, PATCH), rngs=rngs)
        self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, WIDTH)))
        positions = (1, (SIDE // PATCH) ** 2 + 1, WIDTH)
        self.pos_embeddings = nnx.Param(jax.random.normal(rngs.params(), positions))
        self.dropout = nnx.Dropout(0.0, deterministic=False)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        x = self.projection(images)
        x = x.reshape(len(x), -1, WIDTH)
        x = jnp.concatenate([jnp.tile(self.cls_token[...], (len(x), 1, 1)), x], axis=1)
        return self.dropout(x + self.pos_embeddings[...], rngs=rngs)


class BonsaiBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention = _attention(rngs, dropout_rate=0.0)
        self.linear1 = nnx.Linear(WIDTH, 48, rngs=rngs)
        self.linear2 = nnx.Linear(48, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, deterministic=False)
        self.layernorm_before, self.layernorm_after = _norm(rngs), _norm(rngs)

    def __call__(self, x: jax.Array, head_mask=None, *, rngs: nnx.Rngs | None) -> jax.Array:
        x = self.attention(self.layernorm_before(x), head_mask, rngs=rngs) + x
        hidden = jax.nn.gelu(self.linear1(self.layernorm_after(x)))
        return self.dropout(self.linear2(hidden), rngs=rngs) + x


class BonsaiViT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.pos_embeddings = BonsaiEmbeddings(rngs)
        self.layers = nnx.List([BonsaiBlock(rngs) for _ in range(DEPTH)])
        self.ln = _norm(rngs)
        self.classifier = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None) -> jax.Array:
        x = self.pos_embeddings(images, rngs=rngs)
        for layer in self.layers:
            x = layer(x, rngs=rngs)
        return self.classifier(self.ln(x)[:, 0])


class BonsaiLayerScale(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.lambda1 = nnx.Param(1 + 0.3 * jax.random.normal(rngs.params(), (WIDTH,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.lambda1[None, None]


class DinoAttention(nnx.Module):
    def __init__(self, config: "DinoConfig", rngs: nnx.Rngs):
        self.config = config
        for name in "qkvo":
            bias = nnx.initializers.normal(0.5)
            linear = nnx.Linear(WIDTH, WIDTH, use_bias=name != "k", bias_init=bias, rngs=rngs)
            setattr(self, f"{name}_proj", linear)

    def __call__(self, x: jax.Array, turns: tuple[jax.Array, jax.Array]) -> jax.Array:
        heads = self.config.num_attention_heads

        def apart(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

        def turned(x: jax.Array) -> jax.Array:
            first, patches = jnp.split(x, [x.shape[2] - len(turns[0])], axis=2)
            a, b = jnp.split(patches, 2, axis=-1)
            cos, sin = (part[None, None] for part in turns)
            patches = patches * cos + jnp.concatenate([-b, a], axis=-1) * sin
            return jnp.concatenate([first, patches], axis=2)

        q, k, v = (apart(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        logits = turned(q) @ turned(k).swapaxes(2, 3) * q.shape[-1] ** -0.5
        return self.o_proj((nnx.softmax(logits) @ v).swapaxes(1, 2).reshape(x.shape))


class DinoLayer(nnx.Module):
    def __init__(self, config: "DinoConfig", rngs: nnx.Rngs):
        self.norm1, self.norm2 = _norm(rngs, 1e-5), _norm(rngs, 1e-5)
        self.attention = DinoAttention(config, rngs)
        self.layer_scale1, self.layer_scale2 = BonsaiLayerScale(rngs), BonsaiLayerScale(rngs)
        self.mlp = _mlp(rngs)

    def __call__(self, x: jax.Array, turns: tuple[jax.Array, jax.Array]) -> jax.Array:
        x = self.layer_scale1(self.attention(self.norm1(x), turns)) + x
        return self.layer_scale2(self.mlp(self.norm2(x))) + x


@dataclasses.dataclass(frozen=True)
class DinoConfig:
    hidden_size: int = WIDTH
    num_attention_heads: int = HEADS
    num_register_tokens: int = 2
    image_size: int = SIDE
    patch_size: tuple[int, int] = (PATCH, PATCH)


class DinoEmbeddings(nnx.Module):
    def __init__(self, config: DinoConfig, rngs: nnx.Rngs):
        self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, WIDTH)))
        registers = (1, config.num_register_tokens, WIDTH)
        self.register_tokens = nnx.Param(jax.random.normal(rngs.params(), registers))
        self.patch_embeddings = nnx.Conv(
            3, WIDTH, (PATCH, PATCH), strides=(PATCH, PATCH), rngs=rngs
        )

    def __call__(self, pixels: jax.Array) -> jax.Array:
        x = self.patch_embeddings(pixels.transpose(0, 2, 3, 1))
        x = x.reshape(len(x), -1, WIDTH)
        first = [jnp.tile(t[...], (len(x), 1, 1)) for t in (self.cls_token, self.register_tokens)]
        return jnp.concatenate([*first, x], axis=1)


class DinoTurns(nnx.Module):
    """The cosines and sines of every patch, by its place in [-1, 1]."""

    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, columns = (size // PATCH for size in pixels.shape[2:])
        y, x = jnp.meshgrid(jnp.arange(0.5, rows), jnp.arange(0.5, columns), indexing="ij")
        places = jnp.stack([y / rows, x / columns], axis=-1).reshape(-1, 2) * 2 - 1
        speeds = 100.0 ** -(jnp.arange(0, 1, 4 / (WIDTH // HEADS)))
        angles = (2 * jnp.pi * places[:, :, None] * speeds[None, None]).reshape(len(places), -1)
        angles = jnp.tile(angles, (1, 2))
        return jnp.cos(angles), jnp.sin(angles)


class BonsaiDino(nnx.Module):
    """DINOv3, whose images are channels first."""

    def __init__(self, rngs: nnx.Rngs):
        self.config = DinoConfig()
        self.embeddings = DinoEmbeddings(self.config, rngs)
        self.rope_embeddings = DinoTurns()
        self.layer = nnx.List([DinoLayer(self.config, rngs) for _ in range(DEPTH)])
        self.norm = _norm(rngs, 1e-5)

    def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
        x, turns = self.embeddings(pixels), self.rope_embeddings(pixels)
        for layer in self.layer:
            x = layer(x, turns)
        x = self.norm(x)
        return {"last_hidden_state": x, "pooler_output": x[:, 0]}
