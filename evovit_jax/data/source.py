"""Where images come from: `tfds:NAME[:SPLIT]` or `folder:PATH`, read in any order.

Images leave a source as they are stored (JPEG or PNG bytes); who decodes them may do so at the
size that is needed.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evovit_jax.data import labels_table
from evovit_jax.data.spec import DataSpec
from evovit_jax.data.stored_files import expanded, read_regular
from evovit_jax.errors import UserError, some

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")


@runtime_checkable
class Source(Protocol):
    """Random access to labelled images.

    `source[i]` is {"image": bytes of a file, or uint8 [h w] or [h w c], "label": int}.

    Attributes:
        name: for messages.
        num_classes: labels are less than this.
        class_names: one for each class.
        has_names: whether classes are known by their names (class folders), not by their numbers
            (a labels.csv, TFDS): numbers mean the same everywhere, the order of folders does not.
    """

    name: str
    num_classes: int
    class_names: Sequence[str]
    has_names: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def describe(self, index: int) -> str:
        """Names one example, for messages."""
        ...


def open_source(
    spec: str, split_default: str = "train", data_dir: str = "", *, labels_needed: bool = True
) -> Source:
    """Opens `tfds:NAME[:SPLIT]` or `folder:PATH`.

    Args:
        spec: what `--data` takes. NAME may carry TFDS's config and version (`NAME/CONFIG:1.0.0`),
            SPLIT a part (`train[:10%]`).
        split_default: the split of a TFDS specification without one.
        data_dir: where TFDS data sets lie; "" is EVOVIT_DATA_DIR, else TFDS's own default.
        labels_needed: whether a folder of images without class folders or labels.csv is refused.

    Raises:
        UserError: an unknown kind of data, data set or split, a folder without images, a bad
            labels.csv, a TFDS data set in a format without random access.
    """
    parsed = DataSpec.parse(spec)
    if parsed.kind == "folder":
        return FolderSource(parsed.name, labels_needed=labels_needed)
    from evovit_jax.data.tfds_source import TfdsSource  # folders do without TFDS

    return TfdsSource(parsed.name, parsed.split or split_default, data_dir)


def known_class_names(spec: str, data_dir: str = "") -> Sequence[str] | None:
    """The class names of a training data set, where they are at hand; nothing is downloaded.

    No image is listed either, so that a folder of millions takes no longer than one of ten.
    """
    parsed = DataSpec.parse(spec)
    if parsed.kind == "tfds":
        from evovit_jax.data.tfds_source import labels

        classes = labels(parsed.name, data_dir, at_hand=True)
        return classes and classes.names
    root = expanded(parsed.name, "data folder")
    if not root.is_dir():
        return None
    return FolderSource(parsed.name).class_names if _labels_file(root) else _classes(root)


class FolderSource:
    """Class folders, sorted as classes 0..n-1, or files with a labels.csv.

    labels.csv lies beside the images, or beside the folder `images/` that holds them; PATH may name
    either folder. The number of classes is one more than its largest label (see `labels_table`).
    Where no labels are needed a folder may have neither: the images in it have the label -1.
    """

    def __init__(self, path: str, *, labels_needed: bool = True):
        root = expanded(path, "data folder")
        if not root.is_dir():
            raise UserError(f"data folder {path!r} does not exist or is not a folder")
        self.name, self.folder = f"folder:{path}", root
        table = _labels_file(root)
        self.has_names = table is None
        if table is not None:
            self._files, self._labels = labels_table.read(table)
            self.num_classes = max(self._labels) + 1
            self.class_names = [str(label) for label in range(self.num_classes)]
        elif not labels_needed and not _classes(root) and (images := _images_in(root)):
            self._files, self._labels, self.class_names = images, [-1] * len(images), []
            self.num_classes, self.has_names = 0, False
        else:
            self._files, self._labels, self.class_names = _walk_classes(root)
            self.num_classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": read_regular(self._files[index]), "label": self._labels[index]}

    def describe(self, index: int) -> str:
        return self._files[index]

    def identity(self) -> Iterator[tuple]:
        """What tells every image from another one without reading it, and its label."""
        for file, label in zip(self._files, self._labels, strict=True):
            found = os.stat(file)
            yield os.path.relpath(file, self.folder), found.st_size, found.st_mtime_ns, label


class _Renumbered:
    """A source whose labels are replaced: label i by `numbers[i]`."""

    def __init__(self, source: Source, numbers: Sequence[int], class_names: Sequence[str]):
        self.name, self._source, self._numbers = source.name, source, numbers
        self.num_classes, self.class_names = len(class_names), class_names
        self.has_names, self.folder = source.has_names, getattr(source, "folder", None)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        return {**example, "label": self._numbers[example["label"]]}

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def identity(self) -> Iterator[tuple]:
        """As of the source that it stands for, and the numbers of the classes."""
        yield from self._source.identity()
        yield tuple(self._numbers)


class Drawn:
    """Some examples of a source, drawn by chance: of class folders all classes, and not the first.

    `number` of them, or all if there are fewer; the same ones for the same `seed`.
    """

    def __init__(self, source: Source, number: int, seed: int = 0):
        self.name, self._source = source.name, source
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.has_names, self.folder = source.has_names, getattr(source, "folder", None)
        self._chosen = np.random.default_rng(seed).permutation(len(source))[:number]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._chosen[index])]

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._chosen[index]))


def numbered_as(train: Source, source: Source) -> Source:
    """`source`, its class folders numbered as the classes of `train` of the same names are.

    Folders are numbered in their own order, so that one class less in a validation set would change
    the numbers of all that follow.

    Raises:
        UserError: both are class folders, and `train` lacks a class.
    """
    unknown = _unknown(train.class_names, source)
    if not unknown:
        return _renumbered(train.class_names, source)
    if train.has_names and source.has_names:
        raise UserError(f"{source.name} has class folders that {train.name} lacks: {some(unknown)}")
    return source


def numbered_by(names: Sequence[str], source: Source) -> Source:
    """`source`, its class folders numbered as a model's classes of these names are.

    Folders of other names stay in their order where they are as many as the model's classes.

    Raises:
        UserError: they are not as many.
    """
    unknown = _unknown(names, source)
    if not unknown:
        return _renumbered(names, source)
    if source.num_classes == len(names) or not source.has_names:
        return source
    raise UserError(
        f"{source.name} has {source.num_classes} class folders, the model {len(names)} classes, "
        f"none of them named {some(unknown)}: name the folders as the model's classes, or list the "
        "files in a labels.csv with the columns file and label"
    )


def _unknown(names: Sequence[str], source: Source) -> list[str]:
    return sorted(set(source.class_names) - set(names))


def _renumbered(names: Sequence[str], source: Source) -> Source:
    """`source` with the numbers that its classes have among `names`, if they have names at all."""
    own, names = list(source.class_names), list(names)
    if not source.has_names or own == names:
        return source
    return _Renumbered(source, [names.index(name) for name in own], names)


def _labels_file(root: pathlib.Path) -> pathlib.Path | None:
    candidates = [root / "labels.csv"]
    if root.name == "images":
        candidates.append(root.parent / "labels.csv")
    return next((file for file in candidates if file.is_file()), None)


def _walk_classes(root: pathlib.Path) -> tuple[list[str], list[int], list[str]]:
    """All images below the class folders of `root`, sorted by class and name."""
    names = _classes(root)
    if not names:
        raise UserError(
            f"data folder {str(root)!r} holds neither class folders nor a labels.csv "
            "with the columns file and label"
        )
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        images = sorted(_images_below(root / name))
        files += images
        labels += [label] * len(images)
    if not files:
        raise UserError(
            f"data folder {str(root)!r}: its class folders hold no images "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    return files, labels, names


def _images_in(root: pathlib.Path) -> list[str]:
    """The images that lie in a folder itself, sorted."""
    return sorted(
        entry.path for entry in os.scandir(root) if entry.is_file() and _is_image(entry.name)
    )


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _classes(root: pathlib.Path) -> list[str]:
    """The names of the class folders, sorted."""
    entries = os.scandir(root)
    return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def _images_below(folder: pathlib.Path):
    for where, _, names in os.walk(folder, onerror=_refuse):
        for name in names:
            if _is_image(name):
                yield os.path.join(where, name)


def _refuse(error: OSError) -> None:
    raise UserError(f"data folder {error.filename!r} cannot be listed: {error.strerror}")
