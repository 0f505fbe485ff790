"""What reductions keep of the same images, measured image by image.

Each batch is read once. Every reduction sees it as it is, flipped, and moved by one patch; the
network without reduction sees it once, for its class attention. What is kept of an image are a few
numbers, added up in `GroupMeans`; its maps go when the next batch comes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from evovit_jax.benchmarking.group_means import GroupMeans
from evovit_jax.benchmarking.progress import Progress
from evovit_jax.data.source import Drawn, Source, open_source
from evovit_jax.errors import UserError
from evovit_jax.inference import dense_attention, evaluation, objects, token_agreement, views
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.parallel import sharding

Sizes = Int[np.ndarray, "b blocks p"]  # `token_agreement.group_sizes` of every block


@dataclasses.dataclass(frozen=True)
class Study:
    """What was measured; quantities are in `means` under (name, number of the reduction, ...).

    Attributes:
      models: with the first weights, one a reduction.
      weights: how many weights each reduction was tried with.
      grid: (rows, columns) of patches.
      means: of the quantities that `Measures` names.
    """

    models: tuple[ReadyModel, ...]
    weights: int
    grid: tuple[int, int]
    means: GroupMeans


def study(
    models: Sequence[Sequence[ReadyModel]],
    data: str,
    *,
    batch_size: int | None = None,
    count: int | None = None,
    boxes: str | None = None,
    data_dir: str = "",
    progress: Progress,
) -> Study:
    """Measures what reductions of one network keep.

    Args:
      models: of each reduction one for every weights, all of one network.
      data: as `--data` takes it; labels do not count.
      batch_size: images at once, over all devices; None for what suits the hardware.
      count: images drawn by chance; None for all.
      boxes: a boxes.csv, None for none.
      data_dir: where TFDS data sets lie.
      progress: is told of every step.

    Raises:
      UserError: the data or the boxes cannot be used, or there are several processes.
    """
    if jax.process_count() > 1:
        raise UserError("tokens are analysed on one machine; start it there alone")
    first = models[0][0]
    config = evaluation.images_config(first, data, batch_size=batch_size, data_dir=data_dir)
    whole = open_source(data, "test", data_dir, labels_needed=False)
    source = whole if count is None else Drawn(whole, count)
    known = None
    if boxes is not None:
        seen_by = first.transform, first.max_image_pixels
        known = objects.find(boxes, whole, source, *seen_by, progress.say)
    mesh = sharding.make_mesh(config)
    with jax.set_mesh(mesh):
        network = Network(models, config, mesh, progress)
        measures = Measures(GroupMeans(len(source)), network.grid, known)
        look_at_all(network, measures, source, config, progress)
    shown = tuple(run[0] for run in models)
    return Study(shown, len(models[0]), network.grid, measures.means)


class Network:
    """The compiled programs: token maps of each reduction, and the dense network's attention."""

    def __init__(
        self,
        models: Sequence[Sequence[ReadyModel]],
        config: ConfigDict,
        mesh: Mesh,
        progress: Progress,
    ):
        first = models[0][0]
        self.first, self.grid, self.mesh = first, first.model.grid, mesh
        self._maps = [
            evaluation.compiled_of_pixels(
                maps_of(run[0].program[0]), [model.program[1] for model in run], config, mesh
            )
            for run in progress.through(models, "compile")
        ]
        dense = dense_attention.program(first)
        self._attention = None
        if dense:
            (self._attention,) = evaluation.compiled_of_pixels(dense[0], [dense[1]], config, mesh)

    def __len__(self) -> int:
        return len(self._maps)

    def look(
        self, seen: dict[str, UInt8[np.ndarray, "n s s 3"]], real: Bool[np.ndarray, " n"]
    ) -> tuple[list[dict[Any, Sizes]], Float[np.ndarray, "b p"] | None]:
        """The maps of each reduction, by view and by the number of further weights.

        And the class attention of the dense network. Of the images that are `real` only.
        """
        placed = {name: sharding.put_batch(self.mesh, {name: x})[name] for name, x in seen.items()}
        plain = placed[views.PLAIN]
        # All is started before the first result is waited for.
        started = [
            {name: programs[0](x) for name, x in placed.items()}
            | {number: program(plain) for number, program in enumerate(programs[1:], start=1)}
            for programs in self._maps
        ]
        attention = self._attention and self._attention(plain)
        patches = self.grid[0] * self.grid[1]
        maps = []
        for run in started:
            host = {name: np.asarray(found)[real] for name, found in run.items()}
            prefix = host[views.PLAIN].shape[-1] - patches
            maps.append({n: token_agreement.group_sizes(x, prefix) for n, x in host.items()})
        return maps, None if attention is None else np.asarray(attention)[real]


def maps_of(look: Callable) -> Callable[[Any, Array], Int[Array, "b blocks n"]]:
    """Of a program of logits and token maps the maps of all blocks."""
    return lambda state, pixels: jnp.stack(look(state, pixels)[1][:-1], axis=1)


def look_at_all(
    network: Network, measures: "Measures", source: Source, config: ConfigDict, progress: Progress
) -> None:
    """Reads the images, each with a margin for the moved view, and measures."""
    transform = network.first.transform
    side, step = transform.image_size, views.patch_side(transform.image_size, network.grid)
    config.model.image_size = side + 2 * views.margin(side, transform.resize, step)
    with evaluation.open_batches(network.first, config, source) as batches:
        progress.plan(len(batches))
        for number, batch in enumerate(batches):
            real = batch["mask"]
            images = number * config.eval_batch_size + np.flatnonzero(real)
            maps, attention = network.look(views.views(batch["image"], side, step), real)
            measures.add(images, maps, attention)
            progress.step("look")


class Measures:
    """The quantities of a batch: one value an image, `[b]`, or one a block, `[b, blocks]`.

    In `means`, i and j being numbers of reductions: ("tokens", i) of every block; ("flip", i) and
    ("shift", i), the agreement with the other view; ("blocks", i), of the first block that reduces
    with the last one; ("seeds", i), between weights; ("iou", i, j), between reductions; each of
    these with its ("... chance", ...). ("rank", i, j) of lifetimes; ("attention", i), the share
    kept; ("object", i), the tokens' share on objects, ("covered",) that of the image, and
    ("gain", i), their difference.
    """

    def __init__(
        self, means: GroupMeans, grid: tuple[int, int], known: objects.Objects | None = None
    ):
        self.means, self._grid, self._known = means, grid, known

    def add(
        self,
        images: Int[np.ndarray, " b"],
        maps: Sequence[dict[Any, Sizes]],
        attention: Float[np.ndarray, "b p"] | None,
    ) -> None:
        """Adds images, given by their numbers, with what `Network.look` found of them."""
        covered = self._covered(images)
        for i, found in enumerate(maps):
            plain = found[views.PLAIN]
            self.means.add(("tokens", i), images, token_agreement.weights(plain).sum(axis=-1))
            for view in (views.FLIP, views.SHIFT):
                pair = views.same_patches(view, plain, found[view], self._grid)
                self._agreement(images, (view, i), *pair)
            first, reduced = first_reduced(plain)
            pair = first[reduced], plain[reduced, -1]
            self._agreement(images[reduced], ("blocks", i), *pair)
            others = [found[name] for name in found if isinstance(name, int)]
            for a, b in itertools.combinations([plain, *others], 2):
                self._agreement(images, ("seeds", i), a, b)
            if attention is not None:
                kept = token_agreement.share_kept(plain, attention[:, None])
                self.means.add(("attention", i), images, kept)
            if covered is not None:
                on_object = token_agreement.share_of_tokens(plain, covered[:, None])
                self.means.add(("object", i), images, on_object)
                gain = on_object - covered.mean(axis=-1, keepdims=True)
                self.means.add(("gain", i), images, gain)
        plains = [found[views.PLAIN] for found in maps]
        lives = [token_agreement.lifetimes(plain) for plain in plains]
        for i, j in itertools.combinations(range(len(maps)), 2):
            self._agreement(images, ("iou", i, j), plains[i], plains[j])
            rank = token_agreement.rank_correlation(lives[i], lives[j])
            self.means.add(("rank", i, j), images, rank)

    def _agreement(
        self, images: Int[np.ndarray, " b"], name: tuple, a: np.ndarray, b: np.ndarray
    ) -> None:
        """The agreement of two maps of each image, and that of chance."""
        self.means.add(name, images, token_agreement.iou(a, b))
        chance = token_agreement.chance_iou(a, b)
        self.means.add((f"{name[0]} chance", *name[1:]), images, chance)

    def _covered(self, images: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b p"] | None:
        if self._known is None:
            return None
        covered = np.stack([self._known.covered(int(image), self._grid) for image in images])
        self.means.add(("covered",), images, covered.mean(axis=-1))
        return covered


def first_reduced(sizes: Sizes) -> tuple[Int[np.ndarray, "b p"], Bool[np.ndarray, " b"]]:
    """The map of the first block where not every patch has its own token, and if there is one."""
    reduced = (sizes != 1).any(axis=-1)
    first = reduced.argmax(axis=1)
    found = np.take_along_axis(sizes, first[:, None, None], axis=1)[:, 0]
    return found, reduced.any(axis=1)
