"""The order of a run: what goes wrong costs nothing that was there, or was trained."""

import contextlib
import json

import jax
import jax.numpy as jnp
import pytest
from tiny import some_slow, tiny_config

from evovit_jax import create_model, load_weights, weights
from evovit_jax.errors import UserError
from evovit_jax.inference.class_names import class_names
from evovit_jax.inference.ready_model import prepare
from evovit_jax.train import loop
from evovit_jax.train.program import Program, build
from evovit_jax.workdir import checkpoints, config_file


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(loop, "build", lambda config: build(config, jax.devices()[:1]))


def one_phase(**fields):
    """A run whose program stays the same to its end."""
    return tiny_config(layer_to_stage_steps=0, **fields)


def steps(path):
    return sorted(int(p.name) for p in (path / checkpoints.FOLDER).glob("[0-9]*"))


def test_what_cannot_be_evaluated_is_not_trained(tmp_path):
    with pytest.raises(UserError, match="'/nowhere' does not exist"):
        loop.train_and_evaluate(tiny_config(eval_data="folder:/nowhere"), tmp_path)
    assert not (tmp_path / config_file.FILE).exists()


@pytest.mark.slow
def test_an_evaluation_that_fails_keeps_what_was_trained(tmp_path, monkeypatch, capsys):
    fields = {"total_steps": 3, "checkpoint_steps": 3, "eval_steps": 2}
    config = one_phase(keep_checkpoints=1, keep_best=1, **fields)

    def fail(self, state):
        raise RuntimeError("out of memory")

    def worse_at_the_end(self, state):
        return {"val_top1": 90.0 - int(state.step), "val_top5": 99.0, "val_loss": 1.0}

    with monkeypatch.context() as patch:
        patch.setattr(Program, "evaluate", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            loop.train_and_evaluate(config, tmp_path)
    assert steps(tmp_path) == [2]
    monkeypatch.setattr(Program, "evaluate", worse_at_the_end)
    result = loop.train_and_evaluate(config, tmp_path)
    out = capsys.readouterr().out
    assert "restored step 2" in out
    assert "step 2/3  val_top1" in out  # what was due is made up for
    assert result.summary["step"] == 3
    assert steps(tmp_path) == [2, 3]  # the best though it was saved before it was evaluated


@pytest.mark.slow
def test_a_start_that_is_refused_leaves_the_run_as_it_was(tmp_path):
    loop.train_and_evaluate(one_phase(), tmp_path)
    before = (tmp_path / config_file.FILE).read_text()
    with pytest.raises(UserError, match="another architecture"):
        loop.train_and_evaluate(one_phase(model__embed_dim=32), tmp_path)
    assert (tmp_path / config_file.FILE).read_text() == before
    assert json.loads(before)["model"]["embed_dim"] == 16
    other = tmp_path / "other"
    with pytest.raises(UserError, match="no such file"):
        loop.train_and_evaluate(one_phase(init_weights=str(tmp_path / "no.pth")), other)
    assert not (other / config_file.FILE).exists()


@pytest.mark.slow
def test_an_average_of_little_else_than_the_start_is_said(tmp_path, capsys):
    loop.train_and_evaluate(tiny_config(ema__decay=0.999, ema__warmup=False), tmp_path)
    assert "will still hold 100% of the first values" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_keeps_its_class_names(tmp_path, monkeypatch):
    loop.train_and_evaluate(one_phase(), tmp_path)
    monkeypatch.setenv("EVOVIT_DATA_DIR", str(tmp_path / "nowhere"))
    assert class_names(10, weights=str(tmp_path)) == [str(digit) for digit in range(10)]
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_a_teacher_of_other_classes_is_refused(tmp_path):
    small = {"embed_dim": 16, "depth": 3, "num_heads": 2, "image_size": 8, "patch_size": 2}
    path = str(tmp_path / "dense.pth")
    weights.save_weights(create_model("deit_tiny_patch16_224", num_classes=20, **small), path)
    config = tiny_config(
        model__name="deit_tiny_patch16_224", reduction="dynamicvit,locations=1", init_weights=path
    )
    config.update_from_flattened_dict(
        {"distill.kind": "self", "distill.teacher_weights": "", "init_allow_missing": "reducer/.*"}
    )
    with pytest.raises(UserError, match="are for other classes than the data; train the teacher"):
        loop.train_and_evaluate(config, tmp_path / "run")


@pytest.mark.slow
def test_weights_of_a_run_bring_its_settings(tmp_path):
    config = tiny_config(reduction="evo,representative_token=false")
    loop.train_and_evaluate(config, tmp_path)
    fields = {k: v for k, v in config.model.items() if k != "name" and v is not None}
    for path in (tmp_path, tmp_path / checkpoints.FOLDER, tmp_path / checkpoints.FOLDER / "2"):
        model = create_model(config.model.name, "evo", **fields | {"num_classes": 10})
        notes = load_weights(model, path)
        assert "set what these weights were trained with: representative_token=False" in notes
        assert model.reducer.fields.representative_token is False


@pytest.mark.slow
def test_a_reduction_goes_on_from_a_dense_run(tmp_path):
    loop.train_and_evaluate(tiny_config(reduction="none"), tmp_path / "dense")
    config = tiny_config(
        "deit_s_dynamicvit.py",
        init_weights=str(tmp_path / "dense"),
        model__name="evo_deit_tiny_patch16_224",
        reduction="dynamicvit,locations=1",
        distill__teacher_weights="",
    )
    result = loop.train_and_evaluate(config, tmp_path / "reduced")
    assert result.summary["step"] == 2


@pytest.mark.slow
def test_a_typo_in_a_resumed_run_changes_nothing(tmp_path):
    fields = {
        "reduction": "none",
        "distill__kind": "hard",
        "distill__teacher": "regnety_160,stem_width=8,widths=8:16,depth=1:1,group_width=8",
        "distill__teacher_weights": "random",
    }
    loop.train_and_evaluate(tiny_config(**fields), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    assert len(before) == 3  # the config, the metrics, the class names
    typos = {"profile_steps": "10"}, {"distill__teacher_weights": str(tmp_path / "typo")}
    for typo, message in zip(typos, ("say FIRST:END", "no such file"), strict=True):
        with pytest.raises(UserError, match=message):
            loop.train_and_evaluate(tiny_config(**fields | typo, total_steps=4), tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.glob("*.json*")} == before


@pytest.mark.slow
def test_a_restored_run_shows_what_it_was_told_on_purpose(tmp_path):
    loop.train_and_evaluate(tiny_config(), tmp_path)
    found = prepare(weights=str(tmp_path), reduction="evo,representative_token=false")
    assert found.model.reducer.fields.representative_token is False
    assert any("kept as the model was made" in note for note in found.notes)
    other = tmp_path / "without"
    loop.train_and_evaluate(tiny_config(reduction="evo,representative_token=false"), other)
    assert prepare(weights=str(other)).model.reducer.fields.representative_token is False
    with pytest.raises(UserError, match="trained with representative_token=false: leave"):
        prepare(weights=str(other), reduction="evo,representative_token=true")


def test_a_transfer_that_nobody_asked_for_is_an_error(tmp_path, monkeypatch):
    marks = []

    class Mark(contextlib.nullcontext):
        def __init__(self, name, step_num):
            super().__init__()
            marks.append((name, step_num))

    monkeypatch.setattr(loop, "StepTraceAnnotation", Mark)
    loop.train_and_evaluate(one_phase(), tmp_path / "clean")
    assert marks == [("train", 0), ("train", 1)]
    # Arithmetic on what is still on the host moves it without being told to.
    monkeypatch.setattr(loop.sharding, "put_batch", lambda _, batch: jax.tree.map(jnp.sin, batch))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train_and_evaluate(one_phase(), tmp_path / "left on the host")


def test_nothing_is_compiled_once_everything_has_happened(tmp_path, monkeypatch):
    compiled, counts = [], {}

    def hear(event, seconds, **_):
        compiled.extend([event] * (event == "/jax/core/compile/backend_compile_duration"))

    def take(self, step):
        real(self, step)
        counts[step] = len(compiled)

    real = loop.Loop.take
    monkeypatch.setattr(loop.Loop, "take", take)
    jax.monitoring.register_event_duration_secs_listener(hear)
    fields = {"total_steps": 12, "checkpoint_steps": 2, "eval_steps": 2}
    loop.train_and_evaluate(one_phase(**fields), tmp_path)
    # Before step 2 the run evaluates and saves for the first time.
    assert 0 < counts[0] < counts[2]
    assert {counts[step] for step in range(2, 12)} == {counts[2]}


WRONG_LOSSES = {
    "unknown loss.name 'x'": {"loss__name": "x"},
    "no rule of loss.reducer_weights matches": {
        "reduction": "dynamicvit",
        "loss__reducer_weights": (),
    },
    "distill.kind='cls' is for a model with distillation heads": {
        "distill__kind": "cls",
        "distill__teacher_weights": "random",
        "distill__teacher": "deit_tiny_patch16_224,image_size=8,patch_size=2,embed_dim=16,"
        "num_heads=2,depth=1",
    },
}


@pytest.mark.parametrize("message", some_slow(WRONG_LOSSES, {"unknown loss.name 'x'"}))
def test_a_loss_that_does_not_fit_is_refused_before_a_file_is_written(tmp_path, message):
    with pytest.raises(UserError, match=message):
        loop.train_and_evaluate(tiny_config(**WRONG_LOSSES[message]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
