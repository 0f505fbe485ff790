"""The embedded data set: its content, and two processes that prepare it at once."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from evovit_jax.data.source import open_source

PREPARE = """
import sys
from evovit_jax.data.source import open_source
print(len(open_source("tfds:digits:train", data_dir=sys.argv[1])))
assert "tensorflow" not in sys.modules
"""


def test_every_fifth_scan_is_the_test_split(tmp_path):
    digits = load_digits()
    for split, indices in [
        ("test", range(0, 1797, 5)),
        ("train", [i for i in range(1797) if i % 5]),
    ]:
        source = open_source(f"tfds:digits:{split}", data_dir=str(tmp_path))
        assert len(source) == len(indices)
        assert source.num_classes == 10
        found = sorted(
            (example["label"], np.asarray(Image.open(io.BytesIO(example["image"]))).tobytes())
            for example in (source[i] for i in range(len(source)))
        )
        pixels = np.round(digits.images * 255 / 16).astype(np.uint8)
        assert found == sorted((digits.target[i], pixels[i].tobytes()) for i in indices)


@pytest.mark.slow
def test_two_processes_prepare_at_once_without_tensorflow(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PREPARE, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out == "1437\n"
        assert err == ""
