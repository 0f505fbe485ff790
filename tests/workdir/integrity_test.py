"""Checksums, and whose fault it is that a checkpoint cannot be restored."""

import logging
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tiny import tiny_config

from evovit_jax.parallel import sharding
from evovit_jax.workdir import integrity
from evovit_jax.workdir.integrity import Damaged, Unreadable


def test_checksums_see_every_bit_and_no_sharding():
    x = jnp.arange(64, dtype=jnp.float32).reshape(8, 8)
    flipped = x.at[3, 3].set(jnp.nextafter(x[3, 3], jnp.float32(1e9)))
    mesh = sharding.make_mesh(tiny_config(), jax.devices())
    spread = jax.device_put(x, sharding.batch_sharding(mesh))
    sums = [integrity.checksums({"x": v})["x"] for v in (x, flipped, spread)]
    assert sums[0] != sums[1]
    assert sums[0] == sums[2]
    others = {"i": jnp.arange(3), "b": jnp.array([True]), "h": jnp.ones(2, jnp.bfloat16)}
    assert integrity.checksums(others)["b"] == 1
    assert integrity.checksums(jax.device_get({"x": x} | others)) == integrity.checksums(
        {"x": x} | others
    )


def test_files_that_cannot_be_read_are_no_damage(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"x")
    folder = epath.Path(tmp_path)
    wrapped = ValueError("the library's own words")
    assert isinstance(integrity.cause(wrapped, folder), Damaged)
    assert isinstance(integrity.cause(MemoryError(), folder), Unreadable)

    def fail(self, mode):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(folder), "open", fail)
    found = integrity.cause(wrapped, folder)
    assert isinstance(found, Unreadable)
    assert "Input/output error" in str(found)


def test_abandoned_reads_are_not_heard_of(caplog):
    hook = sys.unraisablehook
    with integrity.hushed():
        logging.getLogger("asyncio").error("Task exception was never retrieved")
        assert sys.unraisablehook is not hook
    assert sys.unraisablehook is hook
    logging.getLogger("asyncio").error("later")
    assert caplog.messages == ["later"]


def test_the_record_has_a_checksum_of_its_own():
    run = {"data": {"next_index": 3}, "shapes": {"a": "x"}, "checksums": {"a": 1}}
    run["record"] = integrity.checksum(run)
    integrity.check_record(run)
    with pytest.raises(Damaged, match="checksum"):
        integrity.check_record(run | {"data": {"next_index": 4}})


def test_arrays_are_compared_by_name():
    tree = {"params": {"a": np.ones(2, np.float32)}, "step": np.int32(4)}
    sums = integrity.checksums(tree)
    integrity.check_arrays(tree, sums, 4)
    with pytest.raises(Damaged, match="it holds step 4"):
        integrity.check_arrays(tree, sums, 5)
    with pytest.raises(Damaged, match="params/a"):
        integrity.check_arrays(tree, sums | {"params/a": 0}, 4)


def test_a_pipe_in_a_checkpoint_is_damage(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    (tmp_path / "state" / "d" / "a").write_bytes(b"x")
    (tmp_path / "state" / "link").symlink_to(tmp_path / "state" / "d" / "a")
    integrity.check_files(epath.Path(tmp_path))
    os.mkfifo(tmp_path / "state" / "d" / "b")
    with pytest.raises(Damaged, match="state/d/b is no regular file"):
        integrity.check_files(epath.Path(tmp_path))
