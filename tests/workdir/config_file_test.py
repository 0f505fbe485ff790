"""The config that a work directory keeps."""

import json

import pytest
from etils import epath
from hostile_files import irregular
from tiny import tiny_config

from evovit_jax.errors import UserError
from evovit_jax.workdir import config_file


def keep(path, config):
    with config_file.kept(path, config) as changes:
        return changes


def test_what_changed_is_said(tmp_path):
    path = tmp_path / "a" / "b"
    assert keep(path, tiny_config()) == []
    assert json.loads((path / config_file.FILE).read_text())["model"]["embed_dim"] == 16
    assert keep(path, tiny_config()) == []
    changed = tiny_config(total_steps=3, optim__learning_rate=1.0, optim__clip_norm=2.0)
    assert set(keep(path, changed)) == {
        "total_steps: 2 -> 3",
        "optim.learning_rate: 0.001 -> 1.0",
        "optim.clip_norm: 0.0 -> 2.0",
    }
    assert [file.name for file in path.iterdir()] == [config_file.FILE]


def test_a_start_that_is_refused_leaves_the_config(tmp_path):
    keep(tmp_path, tiny_config())
    with pytest.raises(UserError, match="no"), config_file.kept(tmp_path, tiny_config(seed=5)):
        raise UserError("no")
    assert json.loads((tmp_path / config_file.FILE).read_text())["seed"] == 0
    assert [file.name for file in tmp_path.iterdir()] == [config_file.FILE]


def test_a_config_cut_short_is_written_again(tmp_path):
    (tmp_path / config_file.FILE).write_text('{"mod')
    assert keep(tmp_path, tiny_config()) == []
    assert json.loads((tmp_path / config_file.FILE).read_text())["seed"] == 0


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the work directory .* cannot be written"):
        keep(tmp_path / "file" / "x", tiny_config())


@pytest.mark.parametrize("path", ["", "~nosuchuser/x", "x" * 5000, "a\0b"])
def test_work_directories_that_nobody_has(path):
    with pytest.raises(UserError, match="workdir"):
        config_file.locate(path)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "5", "\udcff", "{"])
def test_a_config_of_another_kind_is_none(tmp_path, content):
    (tmp_path / config_file.FILE).write_bytes(content.encode(errors="surrogateescape"))
    assert keep(tmp_path, tiny_config()) == []
    assert config_file.read_run(epath.Path(tmp_path))["seed"] == 0


@pytest.mark.parametrize("kind", ["pipe", "zero", "huge"])
def test_a_config_that_is_no_file_is_not_read(tmp_path, kind):
    path = irregular(tmp_path, kind)
    with pytest.raises(OSError, match=r"no regular file|more than"):
        config_file.read_json(epath.Path(path))
