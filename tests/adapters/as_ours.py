"""The weights of the small models of other libraries in an encoder of this one."""

from typing import Any

import jax.numpy as jnp
from adapters.other_libraries import CLASSES, DEPTH, HEADS, PATCH, SIDE, WIDTH
from flax import nnx

from evovit_jax.models.encoder import Encoder, EncoderConfig

SIZES = {
    "image_size": SIDE,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_ratio": 2.0,
}


def encoder(reduction: str, *, classes: int = CLASSES, **settings: Any) -> Encoder:
    """An encoder of the sizes of those models."""
    config = EncoderConfig(**SIZES, num_classes=classes, **settings)
    return Encoder(config, reduction, rngs=nnx.Rngs(1))


def copy_linear(linear: nnx.Module, *parts: nnx.Module) -> None:
    """Several linear maps side by side, whatever the shapes of their heads."""
    shape = linear.kernel.shape
    kernels = [part.kernel[...].reshape(shape[0], -1) for part in parts]
    linear.kernel[...] = jnp.concatenate(kernels, axis=1)
    if linear.bias is None:
        return
    width = shape[1] // len(parts)
    biases = [jnp.zeros(width) if part.bias is None else part.bias[...] for part in parts]
    linear.bias[...] = jnp.concatenate([bias.reshape(-1) for bias in biases])


def copy_norm(norm: nnx.LayerNorm, other: nnx.LayerNorm) -> None:
    """Scale and shift."""
    norm.scale[...], norm.bias[...] = other.scale[...], other.bias[...]


def copy_block(block: nnx.Module, norms: tuple, qkv: tuple, out: Any, mlp: tuple) -> None:
    """A block, of its two norms, three projections, output and two linear maps."""
    copy_norm(block.norm1, norms[0])
    copy_norm(block.norm2, norms[1])
    copy_linear(block.attn.qkv, *qkv)
    block.attn.proj.kernel[...] = out.kernel[...].reshape(WIDTH, WIDTH)
    block.attn.proj.bias[...] = out.bias[...]
    copy_linear(block.mlp.fc1, mlp[0])
    copy_linear(block.mlp.fc2, mlp[1])


def flax_qkv(attention: nnx.MultiHeadAttention) -> tuple:
    """The projections of Flax's own attention."""
    return attention.query, attention.key, attention.value


def copy_patches(ours: Encoder, conv: nnx.Conv) -> None:
    """The patch embedding, a convolution there."""
    ours.patch_embed.proj.kernel[...] = conv.kernel[...].reshape(-1, WIDTH)
    ours.patch_embed.proj.bias[...] = conv.bias[...]


def from_jimm(tower: nnx.Module, reduction: str, classifier: nnx.Linear | None = None) -> Encoder:
    """An encoder with the weights of a jimm tower, whose blocks are a sequence."""
    pool = "token" if tower.pooling_type == "CLS" else "map"
    ours = encoder(
        reduction,
        classes=0 if classifier is None else CLASSES,
        class_token=pool == "token",
        pre_norm=tower.use_pre_norm,
        pool=pool,
    )
    copy_patches(ours, tower.patch_embeddings)
    if pool == "token":
        ours.cls_token[...] = tower.cls_token[...]
    ours.pos_embed[...] = tower.position_embeddings[...]
    if tower.use_pre_norm:
        copy_norm(ours.norm_pre, tower.ln_pre)
    copy_jimm_blocks(ours, tower.transformer)
    copy_norm(ours.norm, tower.ln_post)
    if pool == "map":
        copy_pool(ours.attn_pool, tower.MAPHead)
    if classifier is not None:
        copy_linear(ours.head, classifier)
    return ours


def copy_jimm_blocks(ours: Encoder, transformer: nnx.Module) -> None:
    """All blocks of a sequence of jimm's."""
    for block, theirs in zip(ours.blocks, transformer.blocks.layers, strict=True):
        norms, mlp = (theirs.norm1, theirs.norm2), theirs.mlp.layers
        copy_block(block, norms, flax_qkv(theirs.attn), theirs.attn.out, (mlp[0], mlp[3]))


def copy_pool(ours: nnx.Module, head: nnx.Module) -> None:
    """Multihead attention pooling."""
    ours.latent[...] = head.probe[...]
    copy_linear(ours.q, head.attn.query)
    copy_linear(ours.kv, head.attn.key, head.attn.value)
    ours.proj.kernel[...] = head.attn.out.kernel[...].reshape(WIDTH, WIDTH)
    ours.proj.bias[...] = head.attn.out.bias[...]
    copy_norm(ours.norm, head.layernorm)
    copy_linear(ours.mlp.fc1, head.mlp.layers[0])
    copy_linear(ours.mlp.fc2, head.mlp.layers[2])


def from_bonsai(model: nnx.Module, reduction: str) -> Encoder:
    """An encoder with the weights of a bonsai ViT."""
    ours = encoder(reduction, activation="gelu_tanh")
    embeddings = model.pos_embeddings
    copy_patches(ours, embeddings.projection)
    ours.cls_token[...] = embeddings.cls_token[...]
    ours.pos_embed[...] = embeddings.pos_embeddings[...]
    for block, theirs in zip(ours.blocks, model.layers, strict=True):
        norms = theirs.layernorm_before, theirs.layernorm_after
        qkv, out = flax_qkv(theirs.attention), theirs.attention.out
        copy_block(block, norms, qkv, out, (theirs.linear1, theirs.linear2))
    copy_norm(ours.norm, model.ln)
    copy_linear(ours.head, model.classifier)
    return ours


def from_dino(model: nnx.Module, reduction: str) -> Encoder:
    """An encoder with the weights of a bonsai DINOv3."""
    ours = encoder(
        reduction,
        classes=0,
        reg_tokens=model.config.num_register_tokens,
        learned_positions=False,
        rope="dinov3",
        init_values=1.0,
        norm_eps=1e-5,
    )
    copy_patches(ours, model.embeddings.patch_embeddings)
    ours.cls_token[...] = model.embeddings.cls_token[...]
    ours.reg_token[...] = model.embeddings.register_tokens[...]
    for block, theirs in zip(ours.blocks, model.layer, strict=True):
        attention, mlp = theirs.attention, theirs.mlp.layers
        qkv = attention.q_proj, attention.k_proj, attention.v_proj
        copy_block(block, (theirs.norm1, theirs.norm2), qkv, attention.o_proj, (mlp[0], mlp[2]))
        block.ls1.gamma[...] = theirs.layer_scale1.lambda1[...]
        block.ls2.gamma[...] = theirs.layer_scale2.lambda1[...]
    copy_norm(ours.norm, model.norm)
    return ours
