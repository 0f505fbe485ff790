"""A split of a TFDS data set, read at random from array_record files, without TensorFlow.

Tested in tests/data/source_test.py.
"""

import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from evovit_jax.data.digits import prepare_digits
from evovit_jax.data.stored_files import expanded
from evovit_jax.errors import UserError, first_line, suggestion

# The file formats that TFDS reads at random.
RANDOM_ACCESS = ("array_record",)


class TfdsSource:
    """A split of a TFDS data set with features `image` and `label`.

    A data set that is not in `data_dir` is prepared there (downloaded, where TFDS can).
    """

    has_names = False  # as labels, TFDS's numbers are the same for every split

    def __init__(self, name: str, split: str, data_dir: str = ""):
        self.name = f"tfds:{name}:{split}"
        builder = _builder(name, folder(data_dir))
        features = builder.info.features
        if "image" not in features or "label" not in features:
            raise UserError(
                f"data set {name!r} has no features image and label (it has {sorted(features)})"
            )
        if not isinstance(features["label"], tfds.features.ClassLabel):
            raise UserError(f"data set {name!r}: its labels are not classes")
        self.num_classes = features["label"].num_classes
        self.class_names = features["label"].names
        self._data = _open(builder, split, self.name)
        self._about = (builder.info.full_name, str(builder.data_path), split)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self._data[index]
            image, label = example["image"], int(example["label"])
        except MemoryError:
            raise
        except Exception as error:  # whatever the reader raises for a record that is damaged
            raise OSError(f"the record is damaged ({first_line(error)})") from None
        if not 0 <= label < self.num_classes:  # -1 in splits that are published without labels
            raise UserError(
                f"{self.describe(index)} has the label {label}, not one of {self.num_classes} "
                "classes: choose a split that has labels"
            )
        return {"image": image, "label": label}

    def describe(self, index: int) -> str:
        return f"{self.name} example {index}"

    def identity(self) -> Iterator[tuple]:
        """What tells these images from those of another data set, version or split."""
        yield *self._about, len(self)


def folder(data_dir: str) -> str:
    """Where TFDS data sets lie: the field, else EVOVIT_DATA_DIR, else TFDS's default."""
    chosen = data_dir or os.environ.get("EVOVIT_DATA_DIR") or tfds.core.constants.DATA_DIR
    return str(chosen) if "://" in str(chosen) else str(expanded(str(chosen), "data_dir"))


def labels(
    name: str, data_dir: str = "", *, at_hand: bool = False
) -> tfds.features.ClassLabel | None:
    """The classes of a data set, None where they are not known; nothing is downloaded.

    Args:
        name: TFDS's, with configuration and version.
        data_dir: where TFDS data sets lie.
        at_hand: of a data set that is prepared there only.
    """
    try:
        builder = tfds.builder(name, data_dir=folder(data_dir), try_gcs=False)
        classes = None if at_hand and not builder.is_prepared() else builder.info.features["label"]
    except Exception:  # whatever the data set's own code raises
        return None
    return classes if isinstance(classes, tfds.features.ClassLabel) else None


def default_eval_split(name: str, data_dir: str = "") -> str:
    """The split that a run on a data set is evaluated on: validation, else test.

    Raises:
        UserError: the data set has neither.
    """
    splits = _builder(name, folder(data_dir)).info.splits
    for split in ("validation", "test"):
        if split in splits or not splits:  # tfds.testing.mock_data knows no splits
            return split
    raise UserError(
        f"data set {name!r} has neither a validation nor a test split "
        f"({', '.join(splits)}): set eval_data"
    )


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The prepared builder of a data set in a file format with random access."""
    if name.partition(":")[0] == "digits":
        try:
            prepare_digits(data_dir)
        except OSError as error:
            raise UserError(
                f"the digits data set cannot be written to {data_dir!r} ({error}): "
                "set data_dir or EVOVIT_DATA_DIR"
            ) from None
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        close = suggestion(name, known)
        hint = close if close.startswith("did you") else "see tfds.list_builders()"
        raise UserError(f"unknown TFDS data set {name!r} in {data_dir!r}: {hint}") from None
    except Exception as error:  # of the data set's own code: no such version or configuration, ...
        raise UserError(f"TFDS cannot open data set {name!r}: {first_line(error)}") from error
    if builder.is_prepared():
        stored = builder.info.file_format.value
        if stored not in RANDOM_ACCESS:
            raise UserError(
                f"data set {name!r} in {data_dir!r} is stored as {stored}, which cannot be read at "
                "random; convert it once with "
                f"python -m evovit_jax.data.convert_format --data=tfds:{name} "
                f"--data_dir={data_dir} --output=DIR and set data_dir to that DIR"
            )
    else:
        builder = _prepare(name, data_dir)
    return builder


def _prepare(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """Downloads and writes a data set as array_record."""
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # whatever the data set's own code raises
        raise UserError(
            f"data set {name!r} is not in {data_dir!r} and TFDS could not prepare it there: "
            + first_line(error)
        ) from error
    return builder


def _open(builder: tfds.core.DatasetBuilder, split: str, name: str):
    """The split's data source: files as stored, or decoded arrays where TFDS holds no files."""
    try:
        data = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        if len(data) == 0:
            raise UserError(f"{name} is empty")
        try:
            data[0]
        except ModuleNotFoundError:  # tfds.testing.mock_data encodes its images with TensorFlow
            data = builder.as_data_source(split=split)
    except UserError:
        raise
    except Exception:  # of many kinds, for what is no split
        raise UserError(
            f"{name}: no such split (there are {', '.join(builder.info.splits)})"
        ) from None
    return data
