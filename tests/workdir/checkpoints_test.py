"""Saving and restoring: bits, other meshes, damage, other networks."""

import gc
import json
import pathlib
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import some_slow, tiny_config

from evovit_jax.errors import UserError
from evovit_jax.parallel import sharding
from evovit_jax.train.state import new_state
from evovit_jax.workdir import checkpoints, integrity
from evovit_jax.workdir.checkpoints import Checkpointer

SHAPES = {"blocks/0/kernel": (16, 8), "blocks/0/bias": (8,), "head/kernel": (8, 3)}

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(checkpoints, "PAUSE", 0)


def make_state(step=0, shapes=None, tx=None, keep_average=True):
    rng = np.random.default_rng(step)
    params = {
        name: jnp.asarray(rng.normal(size=shape).astype(np.float32))
        for name, shape in (shapes or SHAPES).items()
    }
    stats = {"norm/mean": jnp.asarray(rng.normal(size=4).astype(np.float32))}
    meter = {"sums": {"loss": jnp.float32(step)}, "bad": jnp.int32(-1)}
    state = new_state(params, stats, tx or optax.adam(1e-3), meter, keep_average=keep_average)
    return state.replace(step=jnp.int32(step))


def like(state, mesh=None):
    mesh = mesh or sharding.make_mesh(tiny_config(mesh__data=1), jax.devices()[:1])
    placed = sharding.param_shardings(mesh, state.params, ((".*", "fsdp"),))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        sharding.state_shardings(mesh, state, placed),
    )


def save(tmp_path, *steps, keep=2, metrics=None, **settings):
    checkpointer = Checkpointer(tmp_path, keep=keep, **settings)
    for step in steps:
        scores = {s: top1 for s, top1 in (metrics or {}).items() if s <= step}
        checkpointer.save(step, make_state(step), {"next_index": step}, scores)
    checkpointer.wait()
    return checkpointer


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def kept(tmp_path):
    names = [p.name for p in (tmp_path / checkpoints.FOLDER).iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def test_everything_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 3).close()
    state, data = Checkpointer(tmp_path).restore(like(make_state()))
    same(state, make_state(3))
    assert isinstance(state.opt_state, type(make_state().opt_state))
    assert data == {"next_index": 3}


def test_an_empty_folder_restores_nothing(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.latest_step() is None
    assert checkpointer.restore(like(make_state())) is None


def test_the_newest_and_the_best_stay(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2, keep_best=1, metrics={1: 50.0, 2: 90.0, 4: 60.0}).close()
    assert kept(tmp_path) == [2, 4, 5]


def test_a_step_is_saved_once(tmp_path):
    checkpointer = save(tmp_path, 1)
    checkpointer.save(1, make_state(2), {}, {})
    checkpointer.wait()
    same(checkpointer.restore(like(make_state()))[0], make_state(1))


def test_saving_does_not_see_what_a_donating_step_does_next(tmp_path):
    big = {"a": (512, 1024)}
    checkpointer, state = Checkpointer(tmp_path), make_state(1, big)
    expected = jax.device_get(state)
    checkpointer.save(1, state, {}, {})
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    for _ in range(5):
        state = step(state)
    checkpointer.wait()
    same(checkpointer.restore(like(make_state(0, big)))[0], expected)


def test_another_mesh(tmp_path):
    save(tmp_path, 1).close()
    mesh = sharding.make_mesh(tiny_config(mesh__data=2, mesh__fsdp=4), jax.devices())
    state, _ = Checkpointer(tmp_path).restore(like(make_state(), mesh))
    same(state, make_state(1))
    assert state.params["blocks/0/kernel"].sharding.shard_shape((16, 8)) == (4, 8)


def damage(folder: pathlib.Path, how: str) -> None:
    if how == "no run item":
        (folder / "run" / "metadata").unlink()
        return
    # All of them: the format keeps files that the merge of the processes' parts no longer reads.
    for path in folder.rglob("d/*"):
        data = path.read_bytes()
        start = len(data) // 4
        zeros = b"" if how == "cut short" else bytes(len(data) - start)
        path.write_bytes(data[:start] + zeros)


# Orbax leaves the other reads of a restore that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", some_slow(["cut short", "zeros", "no run item"], {"zeros"}))
def test_a_damaged_newest_one_is_reported_and_passed_over(tmp_path, capsys, how):
    save(tmp_path, 1, 2).close()
    damage(tmp_path / checkpoints.FOLDER / "2", how)
    checkpointer = Checkpointer(tmp_path)
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


def test_another_architecture_names_the_parameters(tmp_path):
    save(tmp_path, 1).close()
    other = {"blocks/0/kernel": (16, 4), "blocks/0/bias": (8,), "head/other": (8, 3)}
    with pytest.raises(UserError) as error:
        Checkpointer(tmp_path).restore(like(make_state(0, other)))
    message = str(error.value)
    assert "is of another architecture" in message
    assert "blocks/0/kernel (float32[16, 8] there, float32[16, 4] here)" in message
    assert "head/other (only here)" in message
    assert "head/kernel (only there)" in message
    assert "bias" not in message
    assert "\n" not in message


def test_another_optimiser_is_said_so(tmp_path):
    save(tmp_path, 1).close()
    with pytest.raises(UserError, match="another optimiser, average or loss: opt_state"):
        Checkpointer(tmp_path).restore(like(make_state(tx=optax.sgd(0.1, momentum=0.9))))


@pytest.mark.parametrize("keep_average", [True, False])
def test_the_evaluated_variables_alone(tmp_path, keep_average):
    state = make_state(1, keep_average=keep_average)
    if keep_average:
        state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state, {}, {})
    checkpointer.close()
    expected = state.evaluated()
    for path in (tmp_path, tmp_path / checkpoints.FOLDER):
        params, stats = checkpoints.load_variables(path)
        same(params, expected[0])
        same(stats, expected[1])
        assert isinstance(params["head/kernel"], np.ndarray)


def test_no_checkpoint_to_load(tmp_path):
    with pytest.raises(UserError, match="has no checkpoint"):
        checkpoints.load_variables(tmp_path)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(5, "Input/output error"), True),
        pytest.param(MemoryError(), True, marks=SLOW),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), True),
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


def test_a_step_that_is_evaluated_after_it_was_saved_can_be_the_best(tmp_path):
    save(tmp_path, 1, 2, keep=1, keep_best=1, metrics={1: 50.0}).close()
    assert kept(tmp_path) == [1, 2]
    checkpointer = Checkpointer(tmp_path, keep=1, keep_best=1)
    same(checkpointer.restore(like(make_state()))[0], make_state(2))
    for step in (3, 4):  # 2 has been evaluated on going on
        checkpointer.save(step, make_state(step), {}, {1: 50.0, 2: 90.0, 4: 60.0})
    checkpointer.close()
    assert kept(tmp_path) == [2, 4]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: run["data"].update(next_index=7), "checksum of the record"),
        pytest.param(lambda run: run.update(data="x"), "checksum of the record", marks=SLOW),
        (lambda run: run.update(checksums=[]), "has no checksums"),
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


def test_a_save_that_does_not_happen_is_said(tmp_path):
    save(tmp_path, 500).close()
    with pytest.raises(UserError, match=r"step 3 was not saved: .* has step 500 already"):
        Checkpointer(tmp_path).save(3, make_state(3), {}, {})


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, caplog):
    checkpointer = save(tmp_path, 1)
    shutil.rmtree(tmp_path)
    tmp_path.write_text("")

    def save_again():
        checkpointer.save(2, make_state(2), {}, {})
        checkpointer.wait()

    with pytest.raises(UserError, match=r"a checkpoint could not be saved in .*; see that"):
        save_again()
    assert not [record for record in caplog.records if record.exc_info]
    tmp_path.unlink()
    (tmp_path / checkpoints.FOLDER).parent.mkdir()
    (tmp_path / checkpoints.FOLDER).write_text("")
    with pytest.raises(UserError, match="is a file"):
        Checkpointer(tmp_path).restore(like(make_state()))


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


@pytest.mark.parametrize("fault", some_slow(["no room", "no folder"], {"no room"}))
def test_a_save_that_fails_says_so_in_one_line_and_nothing_else(tmp_path, capfd, caplog, fault):
    many = {f"blocks/{i}/kernel": (32, 32) for i in range(20)}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, make_state(1, many), {}, {})
    checkpointer.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fail():
        with checkpointer:
            if fault == "no room":
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
            else:
                shutil.rmtree(tmp_path)
            checkpointer.save(2, make_state(2, many), {}, {})
            checkpointer.wait()

    try:
        with pytest.raises(UserError, match=r"a checkpoint could not be saved in .*start again"):
            fail()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    gc.collect()
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.exc_info]
    if fault == "no room":
        same(Checkpointer(tmp_path).restore(like(make_state(0, many)))[0], make_state(1, many))
