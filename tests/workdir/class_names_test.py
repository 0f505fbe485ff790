"""A run's class names in its work directory."""

import os

import jax
import pytest
from hostile_files import not_for_ever

from evovit_jax.errors import UserError
from evovit_jax.workdir import class_names


def test_names_come_back(tmp_path):
    class_names.write(tmp_path, ("ant", "Ünal"))
    assert class_names.read(tmp_path) == ["ant", "Ünal"]


def test_a_run_may_have_kept_none(tmp_path):
    assert class_names.read(tmp_path) is None
    (tmp_path / class_names.FILE).write_text('["ant", ')
    assert class_names.read(tmp_path) is None


def test_one_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    class_names.write(tmp_path, ["ant"])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match=r"class_names\.json cannot be written"):
        class_names.write(tmp_path / "nowhere", ["ant"])


@pytest.mark.parametrize("content", ["5", "{}", "[1, 2]", "[" * 100_000, '["a", null]', "\udcff"])
def test_what_are_no_names_is_none(tmp_path, content):
    (tmp_path / class_names.FILE).write_bytes(content.encode(errors="surrogateescape"))
    assert class_names.read(tmp_path) is None


def test_a_pipe_of_that_name_is_replaced(tmp_path):
    os.mkfifo(tmp_path / class_names.FILE)
    with not_for_ever():
        class_names.write(tmp_path, ["ant"])
        assert class_names.read(tmp_path) == ["ant"]
