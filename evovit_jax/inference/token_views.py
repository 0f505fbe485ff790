"""Writes what networks make of the tokens of images: a picture of each, one of all, a page.

Tested in tests/visualize_test.py.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from evovit_jax import flops
from evovit_jax.data import transforms
from evovit_jax.data.decode import Picture
from evovit_jax.errors import UserError
from evovit_jax.inference import model_flags, output_folder, token_page, token_pictures
from evovit_jax.inference.prediction import readable
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.inference.token_history import TokenHistory, observer
from evovit_jax.inference.visualization import FreeNames, check_has_tokens
from evovit_jax.reduction import parse

PHOTOGRAPH_SIDE = 448  # pixels that a page shows at least, though the network may see fewer
DPI = 110
MOST_ROWS = 256  # of a picture: Matplotlib draws no more than 65,535 pixels


@dataclasses.dataclass(frozen=True)
class Places:
    """Where to write to; None for what is not wanted.

    Attributes:
      folder: for a picture of each image.
      grid: for a picture of all images, PNG.
      page: for the page, HTML.
    """

    folder: pathlib.Path | None = None
    grid: pathlib.Path | None = None
    page: pathlib.Path | None = None


class TokenViews:
    """What networks make of one image after another.

    Attributes:
      pictures: the paths of the pictures that were drawn of single images.
    """

    def __init__(
        self,
        asked: Sequence[ReadyModel],
        dense: ReadyModel | None,
        places: Places,
        kept: Sequence[str] = (),
    ):
        """Networks and places.

        Args:
          asked: the networks that are drawn.
          dense: what the page compares them with; None where it is the first of them.
          places: where to write to.
          kept: files that no picture is to replace.
        """
        self.pictures: list[str] = []
        self._asked, self._places = asked, places
        kept = [*kept, *([str(places.grid)] if places.grid else [])]
        self._names = places.folder and FreeNames(places.folder, kept)
        self._compared = asked if dense is None else [dense, *asked]
        self._observers = [observer(network) for network in self._compared]
        self._rows: list[token_pictures.Row] = []
        self._seen: list[token_page.SeenImage] = []

    def add(self, name: str, picture: Picture) -> None:
        """Looks at an image through all networks, and draws its own pictures.

        Raises:
          UserError: it cannot be decoded, or a picture not be written.
        """
        with readable(name):
            crop = self._asked[0].crop(picture)
            photograph = self._photograph(picture) if self._places.page else crop
        histories = [observe(crop) for observe in self._observers]
        for network, history in zip(self._asked, histories[-len(self._asked) :], strict=True):
            self._draw(name, crop, network, history)
        if self._places.page:
            self._seen.append(token_page.SeenImage(name, photograph, histories))

    def _photograph(self, picture: Picture) -> UInt8[np.ndarray, "s s 3"]:
        """What the networks see, in more pixels where they see few."""
        t = self._asked[0].transform
        side = max(PHOTOGRAPH_SIDE, t.image_size)
        shorter = round(t.resize * side / t.image_size)
        return transforms.evaluation_pixels(picture, shorter, side, t.interpolation)

    def _draw(
        self,
        name: str,
        crop: UInt8[np.ndarray, "s s 3"],
        network: ReadyModel,
        history: TokenHistory,
    ) -> None:
        """The picture of an image in a network, and its row in that of all images."""
        panels = token_pictures.panels(history.maps, prefix=history.prefix, grid=history.grid)
        labels = (name,) if len(self._asked) == 1 else (name, network.reduction)
        if self._places.folder:
            path = self._names.path(" ".join(labels))
            title = f"{name}: class {history.logits.argmax()} ({network.name}, {network.reduction})"
            _save(token_pictures.figure(crop, panels, title=title), path, "--output")
            self.pictures.append(str(path))
        if self._places.grid:
            self._rows.append(token_pictures.Row(labels, crop, panels))

    def finish(self, class_names: Sequence[str] | None) -> dict[str, str]:
        """Writes what shows all images together; returns the paths of `grid` and `page`.

        Args:
          class_names: of the logits; None where these are features.

        Raises:
          UserError: it cannot be written, or there was no image.
        """
        grid, page = self._places.grid, self._places.page
        if not self._rows and not self._seen and (grid or page):
            raise UserError("there are no images to show")
        if grid:
            _save(token_pictures.grid(self._rows), grid, "--grid")
        if page:
            costs = [flops.gmacs(network.model) for network in self._compared]
            shown = [
                token_page.Network(network.reduction, float(f"{cost:.4g}"))
                for network, cost in zip(self._compared, costs, strict=True)
            ]
            text = token_page.page(self._asked[0].name, shown, self._seen, class_names)
            with output_folder.whole_file(page, "--html") as whole:
                whole.write_text(text, encoding="utf-8")
        return {name: str(path) for name, path in (("grid", grid), ("page", page)) if path}


def _save(drawing: Figure, path: pathlib.Path, flag: str) -> None:
    with output_folder.whole_file(path, flag) as whole:
        drawing.savefig(whole, dpi=DPI)


def networks(flags: argparse.Namespace) -> tuple[list[ReadyModel], ReadyModel | None]:
    """The networks that the flags ask for, and the one without reduction to compare them with.

    Where that is one of them, it is the first, and not there again; nor is it without `--html`.

    Raises:
      UserError: as `model_flags.prepare_from`; or they have no tokens.
    """
    if flags.reductions is None:
        asked = [model_flags.prepare_from(flags)]
    else:
        asked = [model_flags.prepare_one(flags, spec) for spec in model_flags.split(flags)]
    check_has_tokens(asked[0])
    is_dense = [parse(network.reduction)[0] == "none" for network in asked]
    if flags.html is None or any(is_dense):
        return [asked[i] for i in np.argsort(np.logical_not(is_dense), kind="stable")], None
    # What only the reduction has in the weights is left out; those above had no gaps.
    given = argparse.Namespace(**vars(flags) | {"allow_missing": True})
    return asked, model_flags.prepare_one(given, "none")


def check_counts(flags: argparse.Namespace) -> None:
    """Refuses more images than a page, or rows than a picture, is for.

    Raises:
      UserError: there are.
    """
    images = len(flags.images) or flags.count
    rows = images * len((flags.reductions or "").split(";"))
    shown = (("html", images, token_page.MOST_IMAGES, "images"), ("grid", rows, MOST_ROWS, "rows"))
    for flag, count, most, what in shown:
        if getattr(flags, flag) is not None and count > most:
            raise UserError(
                f"--{flag} shows at most {most} {what}, not {count}: give fewer files, or a "
                "smaller --count"
            )
