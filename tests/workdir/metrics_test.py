"""The metrics file, the pace, the progress line."""

import contextlib
import json
import os
import resource

import numpy as np
import pytest
from etils import epath
from hostile_files import irregular, not_for_ever
from tensorboard_events import pictures, scalars

from evovit_jax.errors import UserError
from evovit_jax.train import utilisation
from evovit_jax.workdir import metrics


def lines(path):
    return [json.loads(line) for line in (path / metrics.FILE).read_text().splitlines()]


def test_one_line_a_write(tmp_path):
    writer = metrics.MetricWriter(tmp_path, None)
    writer.write(1, {"loss": 2.0})
    writer.write(2, {"loss": 1.5, "val_top1": 10.0})
    assert writer.has_evaluation(2)
    assert not writer.has_evaluation(1)
    writer.close()
    assert lines(tmp_path) == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.5, "val_top1": 10.0},
    ]
    assert scalars(tmp_path / "tensorboard") == [
        (1, "loss", 2.0),
        (2, "loss", 1.5),
        (2, "val_top1", 10.0),
    ]


def test_pictures_are_in_the_event_file_alone(tmp_path):
    writer = metrics.MetricWriter(tmp_path, None)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 20, 3), np.uint8)
    writer.write(1, {"loss": 2.0})
    writer.show(1, {"tokens/000": pixels, "tokens/001": 255 - pixels})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert scalars(tmp_path / "tensorboard") == [(1, "loss", 2.0)]
    found = pictures(tmp_path / "tensorboard")
    assert [(step, name) for step, name, _ in found] == [(1, "tokens/000"), (1, "tokens/001")]
    np.testing.assert_array_equal(found[0][2], pixels)


def test_going_on_drops_later_lines_and_one_cut_short(tmp_path):
    kept = '{"step": 1, "loss": 2.0}\n{"step": 2, "val_top1": 5.0}\n'
    (tmp_path / metrics.FILE).write_text(kept + '{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    writer = metrics.MetricWriter(tmp_path, 2)
    assert (tmp_path / metrics.FILE).read_text() == kept
    assert writer.has_evaluation(2)
    assert writer.last == {"step": 2, "loss": 2.0, "val_top1": 5.0}
    writer.write(3, {"loss": 0.5})
    writer.close()
    assert lines(tmp_path)[-1] == {"step": 3, "loss": 0.5}


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"5", b"[1]", b'{"a": 1}', b'{"step": null}', b'{"step": "x"}', b"[" * 100_000],
)
def test_a_line_that_is_no_record_is_set_aside(tmp_path, capsys, line):
    first, last = b'{"step": 1, "loss": 2.0}\n', b'{"step": 2, "val_top1": 5.0}\n'
    (tmp_path / metrics.FILE).write_bytes(first + line + b"\n" + last)
    writer = metrics.MetricWriter(tmp_path, 2)
    assert (tmp_path / metrics.FILE).read_bytes() == first + last
    assert (tmp_path / metrics.DAMAGED).read_bytes() == line + b"\n"
    said = "metrics.jsonl: damaged lines, now in damaged_metrics.jsonl: 1\n"
    assert capsys.readouterr().out == said
    assert writer.top1 == {2: 5.0}
    writer.close()


def test_nuls_of_a_power_cut_take_no_line_with_them(tmp_path):
    first, last = b'{"step": 1, "loss": 2.0}\n', b'{"step": 2, "val_top1": 5.0}\n'
    (tmp_path / metrics.FILE).write_bytes(first + bytes(9) + last + bytes(5))
    metrics.MetricWriter(tmp_path, 2).close()
    assert (tmp_path / metrics.FILE).read_bytes() == first + last
    assert not (tmp_path / metrics.DAMAGED).exists()


def test_every_process_knows_what_the_first_has_read(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
    lines = ['{"step": 2, "val_top1": 5.0}\n']
    monkeypatch.setattr(metrics.agreement, "from_first", lambda value: lines)
    writer = metrics.MetricWriter(tmp_path, 2)
    assert writer.has_evaluation(2)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / metrics.FILE).mkdir()
    with pytest.raises(UserError, match="the metrics cannot be written"):
        metrics.MetricWriter(tmp_path, 2)


def test_starting_again_starts_the_file_again(tmp_path):
    (tmp_path / metrics.FILE).write_text('{"step": 0, "loss": 2.0}\n')
    metrics.MetricWriter(tmp_path, None).close()
    assert lines(tmp_path) == []


def test_pace_leaves_out_the_first_step_and_pauses(monkeypatch):
    now = iter([0.0, 2.0, 100.0, 104.0])
    monkeypatch.setattr(utilisation.time, "perf_counter", lambda: next(now))
    pace = utilisation.Pace(batch_size=10)
    assert pace.lap() is None
    for _ in range(5):
        pace.stepped()  # the clock starts at 0 after the first
    assert pace.lap() == 4 * 10 / 2
    pace.pause()
    assert pace.lap() is None
    pace.stepped()  # at 100
    pace.stepped()
    assert pace.lap() == 10 / 4
    assert pace.rate() == pytest.approx(50 / 6)


def test_progress():
    values = {"loss": 1.25, "loss_cls": 2.0, "accuracy": 50.0, "images_per_second": 100.0}
    found = utilisation.progress(10, 100, values, batch_size=70)
    assert found == (
        "step 10/100  loss 1.2500  loss_cls 2.0000  accuracy 50.0%  100 images/s  1m03s left"
    )
    del values["images_per_second"]
    assert "left" not in utilisation.progress(10, 100, values, batch_size=70)


@contextlib.contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("values", [{"loss": 1.0}, {"val_top1": 1.0}])
def test_no_room_for_the_metrics_or_their_events_is_one_line(tmp_path, values):
    writer = metrics.MetricWriter(tmp_path, None)

    def write_many():
        for step in range(1, 1000):
            writer.write(step, values)

    # With evaluations the events, which are longer, are written at once and fail first.
    with largest_file(3000), pytest.raises(UserError, match=r"File too large.*has room"):
        write_many()
    writer.close()
    kept, _ = metrics.kept_lines(epath.Path(tmp_path) / metrics.FILE, 1000)
    assert 10 < len(kept) < 200


def test_a_file_that_is_removed_meanwhile_is_said_and_begun_again(tmp_path, capsys):
    writer = metrics.MetricWriter(tmp_path, None)
    writer.write(1, {"loss": 2.0})
    (tmp_path / metrics.FILE).unlink()
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert lines(tmp_path) == [{"step": 2, "loss": 1.0}]
    assert "metrics.jsonl was removed while the run wrote it" in capsys.readouterr().out


@pytest.mark.parametrize("name", [metrics.FILE, metrics.DAMAGED])
@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, kind):
    (tmp_path / metrics.FILE).write_text('{"step": 1, "loss": 2.0}\nno record\n')
    os.replace(irregular(tmp_path, kind), tmp_path / name)
    with not_for_ever(), pytest.raises(UserError, match=r"no regular file|more than 1024"):
        metrics.MetricWriter(tmp_path, 1)
