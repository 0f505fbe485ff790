"""What token merging saves in an encoder, and what it does to its embeddings.

    python experiments/encoders.py costs --models="vit_base_patch14_dinov2.lvd142m" --sizes=224:518
    python experiments/encoders.py embeddings --model=deit_tiny_patch16_224 \
        --weights=DIR/deit_tiny_patch16_224.safetensors --data=folder:DIR

`costs` traces each encoder at each size, dense and with ToMe at the r for about half of the
multiply-adds; nothing is computed. `embeddings` compares the pooled features of a reduced network
with those of the dense one on the same images: their cosine, whether the nearest of the other
images is the same one, and how many of the ten nearest are. Both print a table in Markdown.
"""

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax import flops
from evovit_jax.data import pipeline
from evovit_jax.inference import evaluation, ready_model
from evovit_jax.models import abstract_model

FAMILIES = (
    "vit_base_patch14_dinov2.lvd142m",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch16_dinov3.lvd1689m",
    "vit_base_patch16_siglip_224.v2_webli",
    "vit_base_patch16_clip_quickgelu_224.openai",
    "vit_pe_core_base_patch16_224.fb",
)
REDUCTIONS = "tome,r=4;tome,r=8;tome,r=13;evit,keep_rate=0.7;evo,keep_rate=0.7;shift,keep_rate=0.7"
BATCH, NEAREST = 20, 10


def half(tokens: int, width: int, depth: int) -> int:
    """The r of ToMe that leaves about half of a network's multiply-adds.

    A block of n tokens of width d has about 12 n d^2 + 2 n^2 d of them.
    """

    def cost(r: int) -> int:
        left = [max(tokens - r * block, tokens // 50) for block in range(depth)]
        return sum(12 * n * width**2 + 2 * n**2 * width for n in left)

    return next(r for r in range(1, tokens) if cost(r) <= cost(0) / 2)


def costs(flags: argparse.Namespace) -> Iterator[str]:
    """A row for each encoder and size."""
    yield "| encoder | px | tokens | GMACs | ToMe r | tokens at the end | GMACs | share |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in flags.models.split(";"):
        for size in map(int, flags.sizes.split(":")):
            config = abstract_model(name).config
            side = size - size % config.patch_size
            dense = abstract_model(name, image_size=side)
            tokens = dense.prefix + (side // config.patch_size) ** 2
            r = half(tokens, config.embed_dim, config.depth)
            merged = abstract_model(name, f"tome,r={r}", image_size=side)
            left = tokens_at_the_end(merged, side)
            before, after = flops.gmacs(dense), flops.gmacs(merged)
            yield (
                f"| `{name}` | {side} | {tokens} | {before:.1f} | {r} | {left} | {after:.1f} "
                f"| {100 * after / before:.0f} % |"
            )


def tokens_at_the_end(model: nnx.Module, side: int) -> int:
    """How many tokens of an image come out of the last block."""
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, side, side, model.config.in_channels), jnp.float32)
    _, out = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, images)
    return out.features.shape[1]


def embeddings(flags: argparse.Namespace) -> Iterator[str]:
    """A row for each reduction."""
    yield (
        "| reduction | GMACs | cosine, mean | least | same nearest image | of the ten nearest |\n"
        "|---|---|---|---|---|---|"
    )
    dense, _ = pooled(flags, "none")
    expected = neighbours(dense)
    for reduction in flags.reductions.split(";"):
        reduced, gmacs = pooled(flags, reduction)
        cosine = (dense * reduced).sum(axis=1)
        found = neighbours(reduced)
        shared = [len({*ours} & {*theirs}) for ours, theirs in zip(found, expected, strict=True)]
        yield (
            f"| {reduction} | {gmacs:.3f} | {cosine.mean():.4f} | {cosine.min():.4f} "
            f"| {100 * np.mean(found[:, 0] == expected[:, 0]):.1f} % "
            f"| {100 * np.mean(shared) / NEAREST:.1f} % |"
        )


def pooled(flags: argparse.Namespace, reduction: str) -> tuple[np.ndarray, float]:
    """The pooled features of all images, of length one, and the network's GMACs."""
    model = ready_model.prepare(flags.model, flags.weights, reduction, allow_missing=True)
    graphdef, state = nnx.split(model.model)
    mean, std = (np.asarray(x, np.float32) for x in (model.transform.mean, model.transform.std))

    @jax.jit
    def look(state: nnx.State, pixels: jax.Array) -> jax.Array:
        images = (pixels.astype(jnp.float32) / 255 - mean) / std
        return nnx.merge(graphdef, state)(images)[1].pooled

    config = evaluation.data_config(model, flags.data, batch_size=BATCH)
    with pipeline.make_eval_batches(config, local_batch_size=BATCH) as batches:
        parts = [np.asarray(look(state, b["image"]))[b["mask"].astype(bool)] for b in batches]
    features = np.concatenate(parts)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit, flops.gmacs(model.model)


def neighbours(features: np.ndarray) -> np.ndarray:
    """The `NEAREST` other images of each, the nearest first."""
    likeness = features @ features.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, :NEAREST]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_subparsers(dest="table", required=True)
    of_costs = which.add_parser("costs")
    of_costs.add_argument("--models", default=";".join(FAMILIES))
    of_costs.add_argument("--sizes", default="224:384:518:1024")
    of_embeddings = which.add_parser("embeddings")
    of_embeddings.add_argument("--model", default="deit_tiny_patch16_224")
    of_embeddings.add_argument("--weights", required=True)
    of_embeddings.add_argument("--data", required=True, help="folder:PATH")
    of_embeddings.add_argument("--reductions", default=REDUCTIONS)
    flags = parser.parse_args()
    for row in {"costs": costs, "embeddings": embeddings}[flags.table](flags):
        print(row, flush=True)


if __name__ == "__main__":
    main()
