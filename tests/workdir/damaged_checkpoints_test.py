"""Damaged checkpoints: named, passed over and set aside; storage that does not answer is no damage.

Tests evovit_jax/workdir/checkpoints.py.
"""

import gc
import json
import os
import pathlib
import re
import shutil

import jax
import pytest
from hostile_files import not_for_ever
from small_checkpoints import kept, like, make_state, same, save
from tiny import some_slow

from evovit_jax.errors import UserError
from evovit_jax.workdir import checkpoints, integrity
from evovit_jax.workdir.checkpoints import Checkpointer

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(checkpoints, "PAUSE", 0)


def damage(folder: pathlib.Path, how: str) -> None:
    if how == "no run item":
        (folder / "run" / "metadata").unlink()
        return
    if how == "a pipe":
        path = next(folder.rglob("d/*"))
        path.unlink()
        os.mkfifo(path)
        return
    # All of them: the format keeps files that the merge of the processes' parts no longer reads.
    for path in folder.rglob("d/*"):
        data = path.read_bytes()
        start = len(data) // 4
        zeros = b"" if how == "cut short" else bytes(len(data) - start)
        path.write_bytes(data[:start] + zeros)


# Orbax leaves the other reads of a restore that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "how", some_slow(["cut short", "zeros", "no run item", "a pipe"], {"zeros"})
)
def test_a_damaged_newest_one_is_reported_and_passed_over(tmp_path, capsys, how):
    save(tmp_path, 1, 2).close()
    damage(tmp_path / checkpoints.FOLDER / "2", how)
    checkpointer = Checkpointer(tmp_path)
    with not_for_ever(60):
        state, data = checkpointer.restore(like(make_state()))
    same(state, make_state(1))
    assert data == {"next_index": 1}
    assert re.match(r"checkpoint 2 is damaged \(.+\)", capsys.readouterr().out)
    # Its place is free again.
    checkpointer.save(2, make_state(2), {"next_index": 2}, {})
    checkpointer.wait()
    same(checkpointer.restore(like(make_state()))[0], make_state(2))
    gc.collect()


def test_values_that_changed_on_disk_are_noticed(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        real = integrity.checksums
        patch.setattr(integrity, "checksums", lambda tree: real(tree) | {"params/head/kernel": 1})
        save(tmp_path, 1).close()
    with pytest.raises(UserError, match=r"all checkpoints of .* are damaged"):
        Checkpointer(tmp_path).restore(like(make_state()))
    assert "the checksum of params/head/kernel is wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(5, "Input/output error"), True),
        pytest.param(MemoryError(), True, marks=SLOW),
        pytest.param(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), True, marks=SLOW),
        pytest.param(FileNotFoundError(2, "No such file"), False, marks=SLOW),
        (ValueError("DATA_LOSS: the chunk is too short"), False),
    ],
)
def test_storage_that_does_not_answer_is_no_damage(tmp_path, monkeypatch, capsys, error, passes):
    save(tmp_path, 1, 2).close()

    def fail(folder, tree):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_restore_arrays", fail)
        if isinstance(error, OSError) and passes:
            patch.setattr(integrity, "_read_all", lambda folder: fail(folder, None))
        message = r"2 cannot be read now .*try again" if passes else "all checkpoints .* damaged"
        with pytest.raises(UserError, match=message):
            Checkpointer(tmp_path).restore(like(make_state()))
    assert ("is damaged" in capsys.readouterr().out) is not passes
    # Neither is renamed: the next start finds what this one found.
    assert kept(tmp_path) == [1, 2]
    same(Checkpointer(tmp_path).restore(like(make_state()))[0], make_state(2))


def test_what_is_read_at_the_second_try_is_whole(tmp_path, monkeypatch, capsys):
    save(tmp_path, 1, 2).close()
    real, failures = checkpoints._restore_arrays, [OSError(5, "Input/output error")]

    def fail_once(folder, tree):
        if failures:
            raise failures.pop()
        return real(folder, tree)

    monkeypatch.setattr(checkpoints, "_restore_arrays", fail_once)
    same(Checkpointer(tmp_path).restore(like(make_state()))[0], make_state(2))
    assert capsys.readouterr().out == ""


def test_a_folder_named_after_a_failure_is_none(tmp_path, capsys):
    workdir = tmp_path / "timeout" / "unavailable"
    save(workdir, 1, 2).close()
    damage(workdir / checkpoints.FOLDER / "2", "no run item")
    same(Checkpointer(workdir).restore(like(make_state()))[0], make_state(1))
    assert "checkpoint 2 is damaged" in capsys.readouterr().out


@pytest.mark.slow
def test_damaged_twice_at_the_same_step(tmp_path):
    for _ in range(2):
        save(tmp_path, 1, 2).close()
        damage(tmp_path / checkpoints.FOLDER / "2", "no run item")
        Checkpointer(tmp_path).restore(like(make_state()))
    names = {path.name for path in (tmp_path / checkpoints.FOLDER).iterdir()}
    assert {"1", "damaged_2", "damaged_2_2"} <= names


def old_metrics(folder, content):
    """What older versions kept beside a checkpoint."""
    (folder / "metrics").mkdir()
    (folder / "metrics" / "metrics").write_bytes(content)


@pytest.mark.parametrize("content", [b'{"val', b"\xff\xfe\x00", b"[]", b'{"val_top1": -1.0}'])
def test_metrics_of_older_versions_are_passed_over(tmp_path, content):
    save(tmp_path, 1, 2, keep=2, metrics={1: 50.0}).close()
    old_metrics(tmp_path / checkpoints.FOLDER / "2", content)
    checkpointer = Checkpointer(tmp_path, keep=1, keep_best=1)
    same(checkpointer.restore(like(make_state()))[0], make_state(2))
    checkpointer.save(3, make_state(3), {}, {1: 50.0, 3: 10.0})
    checkpointer.close()
    assert kept(tmp_path) == [1, 3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: run["data"].update(next_index=7), "checksum of the record"),
        pytest.param(lambda run: run.update(data="x"), "checksum of the record", marks=SLOW),
        pytest.param(lambda run: run.update(checksums=[]), "has no checksums", marks=SLOW),
        pytest.param(lambda run: run["shapes"].update(x=3), "has no shapes", marks=SLOW),
        pytest.param(lambda run: run.pop("data"), "is none", marks=SLOW),
        (None, "is none"),
    ],
)
def test_a_record_that_was_changed_is_damage(tmp_path, capsys, change, reason):
    save(tmp_path, 1, 2).close()
    path = tmp_path / checkpoints.FOLDER / "2" / "run" / "metadata"
    run = json.loads(path.read_text())
    if change:
        change(run)
    path.write_text(json.dumps(run if change else [1]))
    state, data = Checkpointer(tmp_path).restore(like(make_state()))
    same(state, make_state(1))
    assert data == {"next_index": 1}
    out = capsys.readouterr().out
    assert out.startswith("checkpoint 2 is damaged (")
    assert reason in out


def test_a_record_of_an_older_version_has_no_checksum(tmp_path):
    save(tmp_path, 1).close()
    path = tmp_path / checkpoints.FOLDER / "1" / "run" / "metadata"
    run = json.loads(path.read_text())
    del run["record"]
    path.write_text(json.dumps(run))
    assert Checkpointer(tmp_path).restore(like(make_state()))[1] == {"next_index": 1}


@pytest.mark.slow
def test_a_renamed_step_is_passed_over_and_later_ones_are_saved(tmp_path, capsys):
    save(tmp_path, 1, 2).close()
    folder = tmp_path / checkpoints.FOLDER
    (folder / "2").rename(folder / "500")
    params, _ = checkpoints.load_variables(tmp_path)
    assert "checkpoint 500 is damaged (it holds step 2)" in capsys.readouterr().err
    same(params, make_state(1).evaluated()[0])
    checkpointer = Checkpointer(tmp_path)
    same(checkpointer.restore(like(make_state()))[0], make_state(1))
    checkpointer.save(3, make_state(3), {}, {})
    checkpointer.close()
    assert {path.name for path in folder.iterdir()} >= {"3", "damaged_500"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", some_slow(["zeros", "swapped"], {"swapped"}))
def test_weights_of_a_run_pass_over_a_damaged_newest_one(tmp_path, capsys, how):
    save(tmp_path, 1, 2).close()
    folder = tmp_path / checkpoints.FOLDER
    if how == "zeros":
        damage(folder / "2", how)
    else:
        shutil.rmtree(folder / "2" / "state")
        shutil.copytree(folder / "1" / "state", folder / "2" / "state")
    params, stats = checkpoints.load_variables(tmp_path)
    same((params, stats), make_state(1).evaluated())
    assert capsys.readouterr().err.startswith("checkpoint 2 is damaged (")
    with pytest.raises(UserError, match="are damaged"):
        checkpoints.load_variables(tmp_path, 2)
    assert kept(tmp_path) == [1, 2]  # a reader renames nothing
