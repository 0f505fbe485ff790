"""The data benchmark on a handful of pictures: what it reports, and what it refuses."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from evovit_jax.benchmarking import data_pipelines
from evovit_jax.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (80, 90, 3), np.uint8)).save(path)
    return f"folder:{tmp_path}"


@pytest.mark.slow
def test_rows_and_table(pictures, monkeypatch):
    monkeypatch.setattr(data_pipelines, "SETTLE", 0.1)
    rows = data_pipelines.run(pictures, batch_size=8, image_size=32, cores=1, rounds=2, seconds=0.2)
    assert [(row["framework"], row["recipe"]) for row in rows] == [
        ("evovit_jax", "crop"),
        ("evovit_jax", "full"),
    ]
    for row in rows:
        assert row["mode"] == "data"
        assert row["batch_size"] == 8
        assert row["images_per_second"] == row["images_per_second_per_core"] > 0
        assert row["images_per_cpu_second"] > 0
        assert row["ratio"] == row["cpu_ratio"] == 1
    table = data_pipelines.format_table(rows).splitlines()
    assert len(table) == 4
    assert table[2].startswith("| evovit_jax | crop | ")


def test_what_is_refused(pictures, tmp_path):
    with pytest.raises(UserError, match="unknown peer 'tensorflow'"):
        data_pipelines.run(pictures, peers=["tensorflow"])
    with pytest.raises(UserError, match="holds no JPEG files"):
        data_pipelines.run("tfds:digits:test[:5]", data_dir=str(tmp_path / "tfds"))


@pytest.mark.parametrize("peer", ["tf", "torch"])
def test_a_peer_that_is_not_installed_says_how_to_install_it(pictures, peer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'evovit_jax\[{peer}\]'"):
        data_pipelines.run(pictures, peers=[peer])


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["tf", "torch"])
def test_beside_a_peer(pictures, peer):
    for module in data_pipelines.MODULES[peer]:
        pytest.importorskip(module)
    rows = data_pipelines.run(
        pictures, peers=[peer], batch_size=8, image_size=32, cores=1, rounds=1, seconds=0.2
    )
    framework, recipes = data_pipelines.PEERS[peer]
    assert [row["recipe"] for row in rows if row["framework"] == framework] == list(recipes)
    assert all(row["ratio"] > 0 for row in rows)
