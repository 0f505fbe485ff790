"""bfloat16 against float32, and one batch size against another, on real weights and photographs.

    python experiments/numerics.py --weights=DIR/deit_tiny_patch16_224.safetensors \
        --data=folder:DIR --images=500 --reductions="none;evit,keep_rate=0.7"

For each reduction (all by default, each with its own settings; what a method would learn is left as
it starts): top-1 in float32 and bfloat16, the share of images that both give the same class, the
largest difference of a logit; and, in either dtype, the share of tokens that batches of 8 and of 1
do not treat alike. Prints a table in Markdown.
"""

import argparse
from collections.abc import Iterator

import jax
import numpy as np

from evovit_jax.data import pipeline
from evovit_jax.inference import evaluation, ready_model
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.reduction import list_reductions

BATCH, FEW = 8, 8


def batches(model: ReadyModel, data: str, images: int) -> Iterator[dict[str, np.ndarray]]:
    """The first images of a data set, in batches of `BATCH`."""
    config = evaluation.data_config(model, data, batch_size=BATCH)
    with pipeline.make_eval_batches(config, local_batch_size=BATCH) as found:
        for number in range(min(len(found), -(-images // BATCH))):
            yield found[number]


def prepared(flags: argparse.Namespace, reduction: str, dtype: str) -> ReadyModel:
    """The model with a reduction, computing in `dtype`."""
    return ready_model.prepare(
        flags.model, flags.weights, reduction, allow_missing=True, dtype=dtype
    )


def look(model: ReadyModel, found: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, float]:
    """Logits of all images, and the share of tokens that differ between batches of 8 and of 1."""
    seen = [model.look(batch["image"]) for batch in found]
    logits = np.concatenate([np.asarray(of_batch) for of_batch, _ in seen])
    together = seen[0][1]
    alone = [model.look(image[None])[1] for image in found[0]["image"][:FEW]]
    differ = [
        np.mean(np.concatenate([maps[block] for maps in alone]) != np.asarray(whole)[:FEW])
        for block, whole in enumerate(together)
    ]
    return logits, float(max(differ))


def row(flags: argparse.Namespace, reduction: str) -> str:
    """One reduction's row of the table."""
    found = list(batches(prepared(flags, reduction, "float32"), flags.data, flags.images))
    counts = np.concatenate([batch["mask"] for batch in found])
    labels = np.concatenate([batch["label"] for batch in found])[counts]
    logits, differ = {}, {}
    for dtype in ("float32", "bfloat16"):
        values, differ[dtype] = look(prepared(flags, reduction, dtype), found)
        logits[dtype] = values[counts]
        jax.clear_caches()
    wide, narrow = (logits[dtype].argmax(axis=1) for dtype in logits)
    top1 = " | ".join(f"{100 * np.mean(classes == labels):.1f}" for classes in (wide, narrow))
    same = f"{100 * np.mean(wide == narrow):.1f} % ({np.sum(wide != narrow)})"
    largest = np.abs(logits["float32"] - logits["bfloat16"]).max()
    tokens = " | ".join(f"{100 * share:.1f} %" for share in differ.values())
    return f"| {reduction} | {len(labels)} | {top1} | {same} | {largest:.2f} | {tokens} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="folder:PATH")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--reductions", default=";".join(list_reductions()))
    flags = parser.parse_args()
    print(
        "| reduction | images | top-1 f32 | top-1 bf16 | same class (others) | logits differ by | "
        "tokens, 8 or 1 at once: f32 | bf16 |\n|---|---|---|---|---|---|---|---|"
    )
    for reduction in flags.reductions.split(";"):
        print(row(flags, reduction), flush=True)


if __name__ == "__main__":
    main()
