"""Faults at random moments of one training, each followed by a restart, against an undisturbed run.

    python tests/faults/campaign.py --faults=50 --seed=0

Trains a tiny network twice on a folder of tiny images: once undisturbed, once with faults at
moments that the seed draws (`kinds_of_fault.FAULTS`). Afterwards parameters, optimiser, averages
and every line of metrics must be the same to the last bit. Prints a table in Markdown: fault,
times, recovered, lost steps.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import random
import sys
import tempfile

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # the tests' folder

from PIL import Image

from evovit_jax.train import utilisation
from evovit_jax.workdir import checkpoints, metrics
from faults.faulty_run import FaultyRun
from faults.kinds_of_fault import FAULTS, Fault, file_system

CLASSES, TRAIN, TEST, SIDE = 4, 12, 3, 8  # images of a class, pixels


@dataclasses.dataclass
class Outcome:
    """What became of one fault.

    Attributes:
      name: of the fault.
      lost: steps that had to be trained again.
      problem: what was not as it should be; "" for nothing.
    """

    name: str
    lost: int
    problem: str


def write_images(folder: pathlib.Path, seed: int) -> None:
    """Class folders of random images."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for label in range(CLASSES):
            place = folder / split / f"class_{label}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (SIDE, SIDE, 3)) + 50 * (label % 2)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")


def drawn(count: int, seed: int, is_small: bool) -> list[type[Fault]]:
    """As many faults, each kind at least once where there are enough, in random order.

    `is_small`: the run lies in a file system of its own, which may be filled.
    """
    draw = random.Random(seed)
    kinds = [kind for kind in FAULTS if is_small or not kind.fills]
    chosen = kinds[:count] + draw.choices(
        kinds, [kind.weight for kind in kinds], k=max(0, count - len(kinds))
    )
    draw.shuffle(chosen)
    return chosen


def run_campaign(room: pathlib.Path, count: int, seed: int, steps: int) -> list[Outcome]:
    """Trains undisturbed and with faults in `room`, and compares."""
    write_images(room / "images", seed)
    calm = FaultyRun(room / "calm", room / "images", steps)
    calm.start()
    calm.finish()
    with file_system(room / "small", "50m") as is_small:
        run = FaultyRun(room / "small" / "disturbed", room / "images", steps)
        outcomes = disturb(run, drawn(count, seed, is_small), random.Random(seed))
        run.finish()
        compare(calm.workdir, run.workdir, steps)
    return outcomes


def disturb(run: FaultyRun, kinds: list[type[Fault]], draw: random.Random) -> list[Outcome]:
    """Lets the faults happen to a run, one after the other, about equally far apart."""
    outcomes, last = [], run.steps - 20
    for number, kind in enumerate(kinds):
        target = round(last * (number + draw.random()) / len(kinds))
        problem = kind(run, draw).happen(target)
        run.go_on()
        outcomes.append(Outcome(kind.name, run.lost, problem))
        lost = f"restored step {run.restored}, {run.lost} steps lost"
        print(f"{number + 1}/{len(kinds)} {kind.name}: {lost} {problem}", flush=True)
    return outcomes


def compare(calm: pathlib.Path, disturbed: pathlib.Path, steps: int) -> None:
    """Fails unless both runs have the same state and the same metrics, to the last bit."""
    folders = [workdir / checkpoints.FOLDER / str(steps) for workdir in (calm, disturbed)]
    jax.tree.map(np.testing.assert_array_equal, *map(checkpoints.read, folders))
    wanted, found = lines(calm), lines(disturbed)
    # A line for every step: an example that was skipped or seen twice would change its loss.
    assert [line["step"] for line in wanted if "loss" in line] == list(range(1, steps + 1))
    assert found == wanted


def lines(workdir: pathlib.Path) -> list[dict[str, float]]:
    """A run's metrics, without its speed."""
    content = (workdir / metrics.FILE).read_text().splitlines()
    records = map(json.loads, content)
    return [{k: v for k, v in line.items() if k not in utilisation.MEASURED} for line in records]


def table(outcomes: list[Outcome]) -> str:
    """Fault, times, recovered, lost steps, in Markdown."""
    by_name = collections.defaultdict(list)
    for outcome in outcomes:
        by_name[outcome.name].append(outcome)
    rows = [*by_name.items(), ("all", outcomes)]
    text = ["| fault | times | recovered | lost steps, mean | most |", "|---|---|---|---|---|"]
    for name, some in rows:
        lost = [outcome.lost for outcome in some]
        good = sum(not outcome.problem for outcome in some)
        text.append(f"| {name} | {len(some)} | {good} | {np.mean(lost):.1f} | {max(lost)} |")
    return "\n".join(text)


def main() -> int:
    """The command; 1 where a fault was not recovered from."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="of the training; 0: 12 a fault")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        steps = flags.steps or 12 * flags.faults
        outcomes = run_campaign(pathlib.Path(room), flags.faults, flags.seed, steps)
    print(table(outcomes))
    return int(any(outcome.problem for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
