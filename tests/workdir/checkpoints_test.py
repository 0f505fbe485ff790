"""Saving and restoring: bits, other meshes, other networks, saves that fail."""

import gc
import resource
import shutil

import jax
import numpy as np
import optax
import pytest
from small_checkpoints import kept, like, make_state, same, save
from tiny import some_slow, tiny_config

from evovit_jax.errors import UserError
from evovit_jax.parallel import sharding
from evovit_jax.workdir import checkpoints
from evovit_jax.workdir.checkpoints import Checkpointer


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(checkpoints, "PAUSE", 0)


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


def test_a_step_that_is_evaluated_after_it_was_saved_can_be_the_best(tmp_path):
    save(tmp_path, 1, 2, keep=1, keep_best=1, metrics={1: 50.0}).close()
    assert kept(tmp_path) == [1, 2]
    checkpointer = Checkpointer(tmp_path, keep=1, keep_best=1)
    same(checkpointer.restore(like(make_state()))[0], make_state(2))
    for step in (3, 4):  # 2 has been evaluated on going on
        checkpointer.save(step, make_state(step), {}, {1: 50.0, 2: 90.0, 4: 60.0})
    checkpointer.close()
    assert kept(tmp_path) == [2, 4]


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
