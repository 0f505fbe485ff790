"""Where images come from: `tfds:NAME[:SPLIT]` or `folder:PATH`, read in any order.

Images leave a source as they are stored (JPEG or PNG bytes); who decodes them may do so at the
size that is needed.
"""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from evovit_jax.errors import UserError, some

# A larger label is the id of something: no published data set has so many classes.
MOST_CLASSES = 1_000_000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")


@runtime_checkable
class Source(Protocol):
    """Random access to labelled images.

    `source[i]` is {"image": bytes of a file, or uint8 [h w] or [h w c], "label": int}. One with an
    attribute `has_names` that is true has classes known by their names, not by their numbers.
    """

    name: str  # for messages
    num_classes: int
    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def describe(self, index: int) -> str:
        """Names one example, for messages."""
        ...


def open_source(spec: str, split_default: str = "train", data_dir: str = "") -> Source:
    """Opens `tfds:NAME[:SPLIT]` or `folder:PATH`.

    Args:
        spec: what `--data` takes. NAME may carry TFDS's config and version (`NAME/CONFIG:1.0.0`),
            SPLIT a part (`train[:10%]`).
        split_default: the split of a TFDS specification without one.
        data_dir: where TFDS data sets lie; "" is EVOVIT_DATA_DIR, else TFDS's own default.

    Raises:
        UserError: an unknown kind of data, data set or split, a folder without images, a bad
            labels.csv, a TFDS data set in a format without random access.
    """
    kind, _, rest = spec.partition(":")
    if not rest or kind not in ("tfds", "folder"):
        raise UserError(f"data {spec!r}: say tfds:NAME, tfds:NAME:SPLIT or folder:PATH")
    if kind == "folder":
        return FolderSource(rest)
    from evovit_jax.data.tfds_source import TfdsSource  # folders do without TFDS

    return TfdsSource(rest, split_default, data_dir)


class FolderSource:
    """Class folders, sorted as classes 0..n-1, or files with a labels.csv.

    labels.csv (columns `file` and `label`, others are ignored) lies beside the images, or beside
    the folder `images/` that holds them; PATH may name either folder. Its labels are integers from
    0, the number of classes is one more than the largest.

    Attributes:
        has_names: whether the classes have names, as folders have; a labels.csv has numbers alone.
    """

    def __init__(self, path: str):
        root = pathlib.Path(path).expanduser()
        if not root.is_dir():
            raise UserError(f"data folder {path!r} does not exist or is not a folder")
        self.name = f"folder:{path}"
        table = _labels_file(root)
        self.has_names = table is None
        if table is not None:
            self._files, self._labels = _read_labels(table)
            self.num_classes = max(self._labels) + 1
            if self.num_classes > MOST_CLASSES:
                raise UserError(
                    f"{table}: label {self.num_classes - 1} makes {self.num_classes} classes; "
                    "number the classes from 0"
                )
            self.class_names = [str(label) for label in range(self.num_classes)]
        else:
            self._files, self._labels, self.class_names = _walk_classes(root)
            self.num_classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self._files[index], "rb") as file:
            return {"image": file.read(), "label": self._labels[index]}

    def describe(self, index: int) -> str:
        return self._files[index]


class _Renumbered:
    """A source whose labels are replaced: label i by `numbers[i]`."""

    def __init__(self, source: Source, numbers: Sequence[int], class_names: Sequence[str]):
        self.name, self._source, self._numbers = source.name, source, numbers
        self.num_classes, self.class_names = len(class_names), class_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._source[index]
        return {**example, "label": self._numbers[example["label"]]}

    def describe(self, index: int) -> str:
        return self._source.describe(index)


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
    if getattr(train, "has_names", False) and getattr(source, "has_names", False):
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
    if source.num_classes == len(names) or not getattr(source, "has_names", False):
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
    if not getattr(source, "has_names", False) or own == names:
        return source
    return _Renumbered(source, [names.index(name) for name in own], names)


def _labels_file(root: pathlib.Path) -> pathlib.Path | None:
    candidates = [root / "labels.csv"]
    if root.name == "images":
        candidates.append(root.parent / "labels.csv")
    return next((file for file in candidates if file.is_file()), None)


def _read_labels(table: pathlib.Path) -> tuple[list[str], list[int]]:
    """The files and labels that a labels.csv lists, in its order."""
    folder = table.parent / "images"
    if not folder.is_dir():
        folder = table.parent
    present = {entry.name for entry in os.scandir(folder)}
    files, labels = [], []
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise UserError(f"{table}: the first line must name the columns file and label")
            for row in rows:
                where = f"{table} line {rows.line_num}"
                labels.append(_label(row["label"], where))
                # Only a name with a folder in it costs a look at the disk.
                name = row["file"] or ""
                if name not in present and not (os.sep in name and (folder / name).is_file()):
                    raise UserError(f"{where}: no file {name!r} in {folder}")
                files.append(str(folder / name))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a CSV file in UTF-8 ({error})") from None
    if not files:
        raise UserError(f"{table} lists no images")
    return files, labels


def _label(text: str | None, where: str) -> int:
    if text is None or not text.strip().isascii() or not text.strip().isdigit():
        raise UserError(f"{where}: label {text!r} is not a whole number from 0")
    return int(text)


def _walk_classes(root: pathlib.Path) -> tuple[list[str], list[int], list[str]]:
    """All images below the class folders of `root`, sorted by class and name."""
    names = sorted(entry.name for entry in os.scandir(root) if _is_class(entry))
    if not names:
        raise UserError(
            f"data folder {str(root)!r} holds neither class folders nor a labels.csv "
            "with the columns file and label"
        )
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(_images_below(root / name))
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(
            f"data folder {str(root)!r}: its class folders hold no images "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    return files, labels, names


def _is_class(entry: os.DirEntry) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _images_below(folder: pathlib.Path):
    for where, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.join(where, name)
