"""Reductions of one model, compared: accuracy on one set of images, and speed in turns.

Tested in tests/compare_test.py.
"""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from evovit_jax import flops
from evovit_jax.benchmarking import figures, identity, timing
from evovit_jax.benchmarking.equal_cost import Found
from evovit_jax.benchmarking.progress import Progress
from evovit_jax.benchmarking.records import Records, digest
from evovit_jax.data.pipeline import EvalBatches
from evovit_jax.data.source import Source
from evovit_jax.errors import UserError
from evovit_jax.inference import evaluation, scoring
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.parallel import sharding

Row = dict[str, Any]
Step = Callable[[Any], dict[str, jax.Array]]

# What was found out is written so often, and when all is done.
SAVE_SECONDS = 30


@dataclasses.dataclass
class Run:
    """One model, and what is known of it so far.

    Attributes:
      model: with its weights.
      key: of its record.
      known: the record: `gmacs`; `batches`, how many it has seen; of each of their images `ranks`
        and `answers` (`scoring.outcomes`); `timing`, empty before it was timed.
      step: its compiled program, None while it need not run.
    """

    model: ReadyModel
    key: dict[str, Any]
    known: dict[str, Any]
    step: Step | None = None


def compare(
    models: Sequence[ReadyModel],
    data: str,
    *,
    batch_size: int | None = None,
    data_dir: str = "",
    rounds: int = 5,
    folder: pathlib.Path | None = None,
    found: Sequence[Found] = (),
    progress: Progress | None = None,
) -> list[Row]:
    """Accuracy, speed and GMACs of models that see images of the same size and preparation.

    Every batch is read once and goes through all models. What an earlier comparison in the same
    folder has found out of the same model, images and code is not computed again.

    Args:
      models: the first is what the others are compared with.
      data: as `--data` takes it; a folder of images may go without labels.
      batch_size: images at once, over all devices; None for what suits the hardware.
      data_dir: where TFDS data sets lie.
      rounds: speed samples of each model.
      folder: where records are kept; None for nowhere.
      found: the costs that models were made for.
      progress: is told of every step.

    Returns:
      A row for each model: see `row_of`.

    Raises:
      UserError: the data cannot be used, or has other classes than the models.
    """
    config = evaluation.data_config(models[0], data, batch_size=batch_size, data_dir=data_dir)
    source = evaluation.open_images(models[0], config, labels_needed=False)
    images, costs = identity.images(source), {one.spec: one.gmacs for one in found}
    with contextlib.ExitStack() as stack:
        progress = progress or stack.enter_context(Progress())
        records = Records(folder, progress.say)
        runs = [begun(model, config, images, records, costs) for model in models]
        complete(runs, source, config, rounds, records, progress)
    return rows_of(runs, {one.spec: one.target for one in found})


def complete(
    runs: Sequence[Run],
    source: Source,
    config: ConfigDict,
    rounds: int,
    records: Records,
    progress: Progress,
) -> None:
    """Finds out what is not known yet of some models: they look at images, and are timed."""
    batches = -(-len(source) // config.eval_batch_size)
    turn = {"rounds": rounds, "first": digest(runs[0].key)}
    unseen = [run for run in runs if run.known["batches"] < batches]
    untimed = [run for run in runs if not turn.items() <= run.known["timing"].items()]
    if untimed and untimed[0] is not runs[0]:
        untimed.insert(0, runs[0])
    progress.plan(len(runs) * batches)
    progress.step("evaluate", sum(run.known["batches"] for run in runs))
    if not untimed:
        return
    mesh = sharding.make_mesh(config)
    opened = evaluation.open_batches(runs[0].model, config, source)
    with jax.set_mesh(mesh), opened as opened:
        for run in progress.through(untimed, "compile"):
            run.step = evaluation.compiled_outcomes(run.model, config, mesh)
        look_at_all(unseen, opened, mesh, records, progress)
        measure(untimed, sharding.put_batch(mesh, next(iter(opened))), turn)
    save(untimed, records)


def save(runs: Sequence[Run], records: Records) -> None:
    """Keeps what is known of the models so far."""
    for run in runs:
        records.write(run.key, run.known)


def begun(
    model: ReadyModel,
    config: ConfigDict,
    images: str,
    records: Records,
    costs: Mapping[str, float],
) -> Run:
    """A model with what is known of it; `images` identifies the data, `costs` are known GMACs."""
    key = identity.evaluated(model, config, images)
    known = records.read(key)
    if known is None:
        cost = costs[model.reduction] if model.reduction in costs else flops.gmacs(model.model)
        known = {"gmacs": cost, "batches": 0, "ranks": [], "answers": [], "timing": {}}
    return Run(model, key, known)


def look_at_all(
    runs: Sequence[Run], batches: EvalBatches, mesh: Mesh, records: Records, progress: Progress
) -> None:
    """Each model sees the batches that it has not seen; what they answer is kept meanwhile."""
    starts = [run.known["batches"] for run in runs]
    first, saved = min(starts, default=len(batches)), time.monotonic()
    waiting: collections.deque[list[tuple[Run, dict[str, jax.Array]]]] = collections.deque()
    for number, on_host in enumerate(batches.starting_at(first), start=first):
        batch = sharding.put_batch(mesh, on_host)
        seeing = [run for run, start in zip(runs, starts, strict=True) if start <= number]
        waiting.append([(run, run.step(batch)) for run in seeing])
        if len(waiting) > scoring.AHEAD:  # a whole set would not fit the devices' memory
            note(waiting.popleft())
        if time.monotonic() - saved > SAVE_SECONDS:
            save(runs, records)
            saved = time.monotonic()
        progress.step("evaluate", len(seeing))
    for outcomes in waiting:
        note(outcomes)
    save(runs, records)


def note(outcomes: Sequence[tuple[Run, dict[str, jax.Array]]]) -> None:
    """Adds what models made of a batch to what is known of them; waits for it."""
    for run, on_device in outcomes:
        found = jax.device_get(on_device)
        run.known["ranks"] += found["rank"][found["mask"]].tolist()
        run.known["answers"] += found["answer"][found["mask"]].tolist()
        run.known["batches"] += 1


def measure(runs: Sequence[Run], batch: Any, turn: Mapping[str, Any]) -> None:
    """Times all models in turns on one batch; the first of them is what the others' are set to."""
    times = timing.interleave(
        {
            number: timing.measure(lambda step=run.step: jax.block_until_ready(step(batch)))
            for number, run in enumerate(runs)
        },
        rounds=turn["rounds"],
    )
    for number, run in enumerate(runs):
        run.known["timing"] = dict(turn) | {
            "images_per_second": round(len(batch["label"]) / times[number].median, 1),
            "spread": round(times[number].spread, 3),
            "speedup": round(timing.ratio(times[0], times[number]), 3),
        }


def rows_of(runs: Sequence[Run], targets: Mapping[str, float]) -> list[Row]:
    """The row of each model, and which of them are on the Pareto front of cost and accuracy.

    Without labels it is that of cost and agreement with the dense network.

    Raises:
      UserError: there is no image.
    """
    dense = next((run for run in runs if run.model.reduction == "none"), None)
    rows = [row_of(run, runs[0], dense) for run in runs]
    for row in rows:
        if targets:
            row["target_gmacs"] = targets.get(row["reduction"])
    gains = [row["agreement"] if row["top1"] is None else row["top1"] for row in rows]
    points = [(row["gmacs"], gain) for row, gain in zip(rows, gains, strict=True)]
    for row, on_front in zip(rows, figures.pareto_front(points), strict=True):
        row["pareto"] = on_front
    return rows


def row_of(run: Run, first: Run, dense: Run | None) -> Row:
    """What is shown of a model; percentages are of the images.

    Returns:
      `reduction`, `top1`, `top5`, `examples`, `images_per_second` (the median round, compiled,
      images on the device), `spread` (the rounds' range over their median), `speedup` over the
      first model (the median of the rounds' ratios), `gmacs`; `top1_low` and `top1_high` of the 95
      % interval; `change` of top-1 from the first model's, and `change_low` and `change_high` of
      its interval over the same images; `agreement` with the answers of the dense network. What
      there are no labels for, or no dense network among the models, is None.

    Raises:
      UserError: there is no image.
    """
    known, ranks = run.known, np.asarray(run.known["ranks"])
    if not len(ranks):
        raise UserError("the evaluation data has no examples")
    row = {"reduction": run.model.reduction, "top1": None, "top5": None, "examples": len(ranks)}
    row |= {key: known["timing"][key] for key in ("images_per_second", "spread", "speedup")}
    row |= {"gmacs": float(f"{known['gmacs']:.4g}")}
    names = ("top1_low", "top1_high", "change", "change_low", "change_high", "agreement")
    row |= dict.fromkeys(names)
    if ranks.min() >= 0:
        hits = (ranks == 0).astype(float)
        changes = hits - (np.asarray(first.known["ranks"]) == 0)
        row["top1"], row["top5"] = percent(hits.mean()), percent((ranks < 5).mean())
        row["top1_low"], row["top1_high"] = map(percent, figures.interval(hits))
        row["change"] = percent(changes.mean())
        row["change_low"], row["change_high"] = map(percent, figures.interval(changes))
    if dense:
        answers = (np.asarray(one.known["answers"]) for one in (run, dense))
        row["agreement"] = percent(figures.agreement(*answers))
    return row


def percent(share: float) -> float:
    """A share in percent, rounded as all are that are shown."""
    return round(100 * float(share), 3)
