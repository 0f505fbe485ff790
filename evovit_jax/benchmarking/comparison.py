"""Reductions of one model, compared: accuracy on one set of images, and speed in turns.

Tested in tests/compare_test.py.
"""

from collections.abc import Sequence
from typing import Any

import jax
from tqdm import tqdm

from evovit_jax import flops
from evovit_jax.benchmarking import timing
from evovit_jax.inference import evaluation, scoring
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.parallel import sharding

Row = dict[str, Any]


def compare(
    models: Sequence[ReadyModel],
    data: str,
    *,
    batch_size: int | None = None,
    data_dir: str = "",
    rounds: int = 5,
) -> list[Row]:
    """Accuracy, speed and GMACs of models that see images of the same size and preparation.

    Returns:
      A row for each: `reduction`, `top1`, `top5`, `examples`, `images_per_second` (the median
      round, compiled, images on the device), `spread` (the rounds' range over their median),
      `speedup` over the first row (the median of the rounds' ratios), `gmacs`.

    Raises:
      UserError: the data cannot be used, or has other classes than the models.
    """
    config = evaluation.data_config(models[0], data, batch_size=batch_size, data_dir=data_dir)
    mesh = sharding.make_mesh(config)
    with jax.set_mesh(mesh), evaluation.open_batches(models[0], config) as batches:
        steps = {
            model.reduction: evaluation.compiled_step(model, config, mesh)
            for model in tqdm(models, desc="compile", unit="reduction", disable=None)
        }
        shown = tqdm(batches, desc="evaluate", unit="batch", disable=None)
        accuracy, batch = scoring.evaluate_all(steps, shown, mesh)
        sums = jax.device_put(scoring.new_sums(), sharding.replicated(mesh))
        times = timing.interleave(
            {
                name: timing.measure(lambda step=step: jax.block_until_ready(step(sums, batch)))
                for name, step in steps.items()
            },
            rounds=rounds,
        )
    first = times[models[0].reduction]
    return [
        {
            "reduction": model.reduction,
            "top1": round(accuracy[model.reduction]["top1"], 3),
            "top5": round(accuracy[model.reduction]["top5"], 3),
            "examples": accuracy[model.reduction]["examples"],
            "images_per_second": round(config.eval_batch_size / times[model.reduction].median, 1),
            "spread": round(times[model.reduction].spread, 3),
            "speedup": round(timing.ratio(first, times[model.reduction]), 3),
            "gmacs": float(f"{flops.gmacs(model.model):.4g}"),
        }
        for model in models
    ]
