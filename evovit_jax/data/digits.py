"""The embedded data set: scikit-learn's 1,797 scanned digits as a TFDS builder.

Real data without a download (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
UCI, 1998), so that the first command of a newcomer takes the same road as ImageNet:
TFDS, array_record, random access.
"""

import contextlib
import fcntl
import io
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey digits; every fifth image is the test split (360), the others train (1,437)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}  # noqa: RUF012 (TFDS reads a plain dict)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            description="Scanned handwritten digits, 8x8 pixels, bundled with scikit-learn.",
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, test: bool):
        from sklearn.datasets import load_digits

        digits = load_digits()
        # The scans have 17 grey levels, 0..16.
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for index, (image, label) in enumerate(zip(images, digits.target, strict=True)):
            if (index % 5 == 0) == test:
                yield index, {"image": _png(image), "label": int(label)}


def _png(image: np.ndarray) -> io.BytesIO:
    """A PNG file in memory; TFDS would import TensorFlow to encode an array."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    file.seek(0)
    return file


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds a lock file in `folder`; the operating system frees it when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".digits.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's progress bars, its talk of a download and its warning of an empty folder."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def prepare_digits(data_dir: str) -> None:
    """Writes the data set to `data_dir` unless it is there; two processes may call it at once.

    Raises:
        OSError: the folder cannot be written.
    """
    with _quiet():
        if Digits(data_dir=data_dir, file_format="array_record").is_prepared():
            return
        # A bucket has no locks; there TFDS's own renaming decides who was first.
        with _lock(pathlib.Path(tempfile.gettempdir() if "://" in data_dir else data_dir)):
            builder = Digits(data_dir=data_dir, file_format="array_record")
            if not builder.is_prepared():  # by who held the lock before
                builder.download_and_prepare()
