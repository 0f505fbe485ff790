"""What reads images ends its threads and processes; tested here for all that open some."""

import multiprocessing
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from evovit_jax.benchmarking import comparison
from evovit_jax.config import get_config
from evovit_jax.data import pipeline
from evovit_jax.errors import UserError
from evovit_jax.inference import evaluation
from evovit_jax.inference.ready_model import prepare

SMALL = {"image_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten random images of two classes."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(10):
        path = root / f"class {i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def left():
    """Says which threads and child processes there are that were not before."""
    before = {*threading.enumerate(), *multiprocessing.active_children()}

    def left():
        deadline = time.monotonic() + 5  # a thread that was told to end may take a moment
        while True:
            now = {*threading.enumerate(), *multiprocessing.active_children()} - before
            now = {item for item in now if not item.name.startswith("tqdm")}  # one for all bars
            if not now or time.monotonic() > deadline:
                return sorted(item.name for item in now)
            time.sleep(0.01)

    return left


@pytest.fixture
def damaged(folder, tmp_path):
    """The same with more files that are no images than an evaluation skips."""
    shutil.copytree(folder, tmp_path / "data")
    for i in range(get_config().data_limit_unreadable + 1):
        (tmp_path / "data" / "class 1" / f"x{i}.png").write_bytes(b"no image")
    return tmp_path / "data"


def compare_one(model, data, batch_size):
    return comparison.compare([model], data, batch_size=batch_size, rounds=1)


@pytest.mark.parametrize("run", [evaluation.evaluate, compare_one])
def test_an_evaluation_leaves_nothing_running(folder, damaged, left, run):
    """Nor does one that ends in an error, whose traceback a notebook keeps."""
    model = prepare("deit_tiny_patch16_224", num_classes=2, **SMALL)
    run(model, f"folder:{folder}", batch_size=8)
    with pytest.raises(UserError, match="unreadable") as caught:
        run(model, f"folder:{damaged}", batch_size=8)  # the first batch is whole
    assert left() == []
    assert caught.tb is not None


def train_config(folder):
    config = get_config()
    config.data = f"folder:{folder}"
    config.model.image_size, config.model.num_classes = 16, 2
    return config


@pytest.mark.parametrize("processes", [0, 1])
def test_a_closed_train_iterator_leaves_nothing_running(folder, left, processes):
    config = train_config(folder)
    config.data_processes = processes
    batches = pipeline.make_train_iterator(config, local_batch_size=4, seed=0)
    next(batches)
    batches.close()
    assert left() == []


def test_a_pass_that_is_given_up_leaves_nothing_running(folder, left):
    config = train_config(folder)
    config.eval_data = config.data
    with pipeline.make_eval_batches(config, local_batch_size=4) as batches:
        next(iter(batches))
    assert left() == []
