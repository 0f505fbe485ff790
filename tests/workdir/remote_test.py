"""Work directories that cannot be appended to, played by a local folder."""

import json

import pytest
from etils import epath
from tensorboard_events import scalars
from tiny import tiny_config

from evovit_jax.train import loop, profiler
from evovit_jax.workdir import config_file, metrics, remote
from evovit_jax.workdir.remote import Mirror


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A folder that counts as an object store; where files are written first is `local`."""
    monkeypatch.setattr(remote, "is_remote", lambda path: True)
    local = tmp_path / "local"
    local.mkdir()
    monkeypatch.setattr(remote.tempfile, "mkdtemp", lambda prefix: str(local))
    return tmp_path / "remote"


@pytest.mark.parametrize(
    ("path", "expected"), [("gs://bucket/run", True), ("/tmp/run", False), ("run", False)]
)
def test_what_is_remote(path, expected):
    assert remote.is_remote(path) is expected


def test_a_path_in_an_object_store_stays_one(tmp_path, monkeypatch):
    assert str(config_file.locate("gs://bucket/run")) == "gs://bucket/run"
    assert str(config_file.locate("gs://bucket/run") / "a") == "gs://bucket/run/a"
    monkeypatch.chdir(tmp_path)
    assert str(config_file.locate("run")) == str(tmp_path / "run")


def test_a_local_folder_is_written_directly(tmp_path):
    found = Mirror(tmp_path)
    assert found.folder == tmp_path
    (tmp_path / "a").write_text("x")
    found.push()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_changed_is_copied(store, monkeypatch):
    found = Mirror(store)
    (found.folder / "deep").mkdir()
    (found.folder / "a").write_text("1")
    (found.folder / "deep" / "b").write_bytes(b"\x00\xff")
    found.push("a")
    assert [p.name for p in store.iterdir()] == ["a"]
    found.push()
    assert (store / "deep" / "b").read_bytes() == b"\x00\xff"
    (found.folder / "a").write_text("22")
    written = []
    monkeypatch.setattr(epath.Path("/").__class__, "write_bytes", lambda p, d: written.append(d))
    found.push()
    assert written == [b"22"]


def test_nothing_is_left_on_this_machine(store):
    found = Mirror(store)
    (found.folder / "a").write_text("1")
    found.close()
    assert (store / "a").read_text() == "1"
    assert not found.folder.exists()


def test_a_local_folder_stays(tmp_path):
    Mirror(tmp_path).close()
    assert tmp_path.exists()


def test_metrics_reach_the_store_line_by_line(store):
    store.mkdir()
    (store / metrics.FILE).write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    writer = metrics.MetricWriter(store, 1)
    writer.write(2, {"loss": 1.5})
    lines = (store / metrics.FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 1.5},
    ]
    assert not (store / metrics.EVENTS).exists()
    writer.write(2, {"val_top1": 10.0})
    assert (store / metrics.EVENTS).is_dir()
    writer.close()
    assert scalars(store / metrics.EVENTS) == [(2, "loss", 1.5), (2, "val_top1", 10.0)]
    assert len((store / metrics.FILE).read_text().splitlines()) == 3


def test_a_trace_reaches_the_store(store, monkeypatch):
    def stop():
        folder = remote.pathlib.Path(remote.tempfile.mkdtemp(prefix="")) / profiler.FOLDER
        folder.mkdir()
        (folder / "host.xplane.pb").write_bytes(b"trace")

    monkeypatch.setattr(profiler.jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(profiler.jax.profiler, "stop_trace", stop)
    tracer = profiler.Profiler("0:1", store)
    tracer.before(0)
    tracer.after(0, None)
    assert (store / profiler.FOLDER / "host.xplane.pb").read_bytes() == b"trace"


@pytest.mark.slow
def test_a_run_goes_on_from_the_store(store, capsys):
    fields = {"checkpoint_steps": 1, "eval_steps": 2, "layer_to_stage_steps": 4}
    loop.train_and_evaluate(tiny_config(total_steps=2, **fields), str(store))
    done = loop.train_and_evaluate(tiny_config(total_steps=4, **fields), str(store))
    assert "restored step 2" in capsys.readouterr().out
    assert done.summary["step"] == 4
    lines = [json.loads(line) for line in (store / metrics.FILE).read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert {p.name for p in store.iterdir()} >= {"checkpoints", "config.json", "tensorboard"}
