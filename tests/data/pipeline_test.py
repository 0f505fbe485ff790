"""Batches: the same whatever the workers, the processes and the interruptions."""

import json
import shutil

import grain.checkpoint
import image_fuzz
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
from hostile_files import IRREGULAR, irregular
from PIL import Image

from evovit_jax.config import get_config
from evovit_jax.data import pipeline
from evovit_jax.errors import UserError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of 23 small JPEG files in three classes, large enough not to be kept decoded."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(23):
        path = root / f"class{i % 3}" / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        tiny = rng.integers(0, 255, (6, 8, 3), np.uint8)
        Image.fromarray(tiny).resize((90 + i, 80)).save(path)
    return root


def make_config(data: str, **augment):
    config = get_config()
    config.data = config.eval_data = data
    config.model.image_size = 32
    config.model.num_classes = 10
    config.augment.randaugment = ""
    config.augment.update(augment)
    return config


def take(iterator, count: int) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(count)]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all((a[key] == b[key]).all() for key in a)


def by_index(batch: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
    return dict(zip(batch["index"].tolist(), batch["image"], strict=True))


def train(config, batch: int, seed: int = 0, **process):
    return pipeline.make_train_iterator(config, local_batch_size=batch, seed=seed, **process)


@pytest.mark.parametrize("repeats", [1, 3])
def test_workers_and_processes_do_not_change_a_pixel(photographs, repeats):
    config = make_config(f"folder:{photographs}", repeats=repeats)
    config.data_threads = 1
    whole = take(train(config, 12), 5)
    assert whole[0]["image"].shape == (12, 32, 32, 3)
    assert whole[0]["image"].dtype == np.uint8
    assert whole[0]["label"].dtype == np.int32
    assert whole[0]["index"].dtype == np.int64
    for workers in (2, 4):
        config.data_threads = workers
        assert all(map(same, whole, take(train(config, 12), 5)))
    if repeats == 1:
        config.data_processes = 2
        assert all(map(same, whole, take(train(config, 12), 5)))
        config.data_processes = 0
    for count in (2, 4):
        parts = [
            take(train(config, 12 // count, process_index=i, process_count=count), 5)
            for i in range(count)
        ]
        for step, batch in enumerate(whole):
            joined = {k: np.concatenate([part[step][k] for part in parts]) for k in batch}
            assert same(batch, joined)


def test_a_resumed_run_on_other_processes_goes_on_with_the_same_data(photographs):
    config = make_config(f"folder:{photographs}")
    whole = take(train(config, 8), 7)
    stopped = train(config, 8)
    take(stopped, 4)
    state = json.loads(json.dumps(stopped.get_state()))
    parts = []
    for i in range(2):
        part = train(config, 4, process_index=i, process_count=2)
        part.set_state(state)
        parts.append(take(part, 3))
    for step, batch in enumerate(whole[4:]):
        joined = {k: np.concatenate([part[step][k] for part in parts]) for k in batch}
        assert same(batch, joined)


def test_the_iterator_goes_through_orbax(photographs, tmp_path):
    config = make_config(f"folder:{photographs}")
    iterator = train(config, 8)
    take(iterator, 3)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(
            0,
            args=ocp.args.Composite(
                data=grain.checkpoint.CheckpointSave(iterator),
                position=ocp.args.JsonSave(iterator.get_state()),
            ),
        )
        manager.wait_until_finished()
        want = take(iterator, 2)
        fresh, other = train(config, 8), train(config, 8)
        restored = manager.restore(
            0,
            args=ocp.args.Composite(
                data=grain.checkpoint.CheckpointRestore(fresh), position=ocp.args.JsonRestore()
            ),
        )
        other.set_state(restored.position)
    assert all(map(same, want, take(fresh, 2)))
    assert all(map(same, want, take(other, 2)))


def test_an_epoch_shows_every_image_once_and_differently_the_next_time(photographs):
    config = make_config(f"folder:{photographs}")
    batches = take(train(config, 23), 2)
    for batch in batches:
        assert sorted(batch["index"]) == list(range(23))
    first, second = map(by_index, batches)
    assert all((first[i] != second[i]).any() for i in range(23))
    assert pipeline.examples_per_epoch(config, pipeline.train_source(config)) == 23


def test_the_seed_changes_order_and_pixels(photographs):
    config = make_config(f"folder:{photographs}")
    a, b = take(train(config, 23, seed=1), 1)[0], take(train(config, 23, seed=2), 1)[0]
    assert (a["index"] != b["index"]).any()
    first, second = by_index(a), by_index(b)
    assert all((first[i] != second[i]).any() for i in range(23))


def test_small_images_kept_in_memory_are_the_same_when_read_again(tmp_path):
    config = make_config("tfds:digits:train[:20]", crop="none", flip=0.0, color_jitter=0.0)
    config.data_dir = str(tmp_path)
    batches = take(train(config, 20), 3)
    first = by_index(batches[0])
    for batch in batches[1:]:
        assert all((first[i] == image).all() for i, image in by_index(batch).items())


@pytest.mark.parametrize(("count", "batch"), [(1, 5), (2, 4), (3, 10)])
def test_evaluation_sees_every_example_once(photographs, count, batch):
    config = make_config(f"folder:{photographs}")
    parts = [
        pipeline.make_eval_batches(
            config, local_batch_size=batch, process_index=i, process_count=count
        )
        for i in range(count)
    ]
    for _ in range(2):
        lists = [list(part) for part in parts]
        assert {len(x) for x in lists} == {len(parts[0])} == {-(-23 // (count * batch))}
        batches = [b for x in lists for b in x]
        assert all(b["image"].shape == (batch, 32, 32, 3) for b in batches)
        labels = np.concatenate([b["label"][b["mask"]] for b in batches])
        assert np.bincount(labels).tolist() == [8, 8, 7]
        assert all((b["image"][~b["mask"]] == 0).all() for b in batches)


def damage(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8\xff no picture")


@pytest.fixture
def damaged(photographs, tmp_path):
    for path in photographs.rglob("*.jpg"):
        copy = tmp_path / path.relative_to(photographs)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    damage(tmp_path, ["class0/03.jpg", "class2/23.jpg"])
    return tmp_path


def test_unreadable_images_are_named_and_replaced(damaged, caplog):
    config = make_config(f"folder:{damaged}")
    config.data_limit_unreadable = 2
    batches = take(train(config, 24), 3)
    names = [str(damaged / "class0/03.jpg"), str(damaged / "class2/23.jpg")]
    for name in names:
        assert sum(f"skipped unreadable image {name}" in m for m in caplog.messages) == 1
    for batch in batches:
        # The next example stands in for the unreadable one: 1 is class0/03, 23 the last.
        assert np.bincount(batch["index"], minlength=24)[[0, 1, 2, 23]].tolist() == [2, 0, 2, 0]
    assert all(map(same, batches, take(train(config, 24), 3)))


def test_too_many_unreadable_images_end_the_run(damaged):
    config = make_config(f"folder:{damaged}")
    config.data_limit_unreadable = 1
    with pytest.raises(UserError, match=r"2 unreadable images, the last .*jpg.*data_limit_unread"):
        take(train(config, 24), 1)


def test_worker_processes_name_unreadable_images_too(damaged, caplog):
    config = make_config(f"folder:{damaged}")
    config.data_limit_unreadable, config.data_processes = 2, 1
    take(train(config, 24), 1)
    assert sum("skipped unreadable image" in message for message in caplog.messages) == 2
    config.data_limit_unreadable = 0
    with pytest.raises(UserError, match="unreadable images, the last"):
        take(train(config, 24), 1)


def test_nothing_but_unreadable_images(tmp_path):
    damage(tmp_path, ["a/1.jpg", "b/2.png"])
    config = make_config(f"folder:{tmp_path}")
    config.data_limit_unreadable = 100
    with pytest.raises(UserError, match=r"no image of folder:.* can be read"):
        take(train(config, 4), 1)


def test_evaluation_masks_an_unreadable_image(damaged):
    config = make_config(f"folder:{damaged}")
    config.data_limit_unreadable = 2
    masks = [b["mask"] for b in pipeline.make_eval_batches(config, local_batch_size=8)]
    assert np.flatnonzero(~np.concatenate(masks)).tolist() == [1, 23]
    config.data_limit_unreadable = 0
    # Of two it would name one or both, by how far ahead the threads have read.
    shutil.copy(damaged / "class2/20.jpg", damaged / "class2/23.jpg")
    with pytest.raises(UserError, match="1 unreadable images"):
        list(pipeline.make_eval_batches(config, local_batch_size=8))


def test_more_classes_than_the_model_has(photographs):
    config = make_config(f"folder:{photographs}")
    config.model.num_classes = 2
    with pytest.raises(UserError, match=r"has 3 classes, model\.num_classes=2"):
        train(config, 4)


def test_evaluation_data_by_default(tmp_path, photographs):
    config = make_config("tfds:digits:train[:50%]")
    config.eval_data, config.data_dir = "", str(tmp_path)
    assert pipeline.eval_source(config).name == "tfds:digits:test"
    config.data = f"folder:{photographs}"
    with pytest.raises(UserError, match="eval_data is empty"):
        pipeline.eval_source(config)


def test_imagenet_in_batches():
    config = make_config("tfds:imagenet2012:train")
    config.model.num_classes = 1000
    config.eval_data = ""
    with tfds.testing.mock_data(num_examples=6):
        batch = take(train(config, 8), 2)[1]
        assert batch["image"].shape == (8, 32, 32, 3)
        masks = [b["mask"].sum() for b in pipeline.make_eval_batches(config, local_batch_size=4)]
        assert masks == [4, 2]


def test_a_folder_that_has_gone_is_no_unreadable_image(photographs, tmp_path):
    root = shutil.copytree(photographs, tmp_path / "gone")
    with pipeline.make_eval_batches(make_config(f"folder:{root}"), local_batch_size=4) as batches:
        assert batches[0]["mask"].all()
        root.rename(tmp_path / "away")
        with pytest.raises(UserError, match=r"the data folder .*gone has gone; put it back"):
            batches[1]


def test_a_folder_of_traps_is_named_and_passed_over(photographs, tmp_path, caplog):
    folder = tmp_path / "data"
    shutil.copytree(photographs, folder)
    for kind in IRREGULAR:
        if kind not in ("folder", "loop"):
            irregular(folder / "class0", kind)
    (folder / "class0" / "wide.png").write_bytes(image_fuzz.png(65_536, 1, bytes(65_537)))
    config = make_config(f"folder:{folder}", repeats=1)
    with pipeline.make_eval_batches(config, local_batch_size=31) as batches:
        masks = [batch["mask"].sum() for batch in batches]
    traps = 7
    assert sum(masks) == 23
    named = [
        record.getMessage() for record in caplog.records if "unreadable" in record.getMessage()
    ]
    assert len(named) == traps
    assert sum("no regular file" in line for line in named) == 4
    config.data_limit_unreadable = traps - 1
    with (
        pytest.raises(UserError, match=f"{traps} unreadable images"),
        pipeline.make_eval_batches(config, local_batch_size=31) as batches,
    ):
        list(batches)


def test_too_little_memory_for_an_image_does_not_end_a_run(photographs, monkeypatch):
    def refuse(*args, **options):
        raise MemoryError

    config = make_config(f"folder:{photographs}", crop="src")
    config.data_limit_unreadable = 23
    monkeypatch.setattr("evovit_jax.data.transforms.resized_part", refuse)
    with (
        pytest.raises(UserError, match=r"no image of .* can be read, .*: MemoryError"),
        pipeline.make_eval_batches(config, local_batch_size=8) as batches,
    ):
        list(batches)


def test_more_processes_than_a_machine_holds_are_refused(photographs):
    config = make_config(f"folder:{photographs}")
    config.data_processes = 1000
    with pytest.raises(UserError, match="data_processes=1000 must be at most 8 for each of"):
        pipeline.make_train_iterator(config, local_batch_size=8, seed=0)


def test_the_largest_image_is_a_field_of_the_config(photographs):
    config = make_config(f"folder:{photographs}")
    config.max_image_pixels = 100 * 80
    config.data_limit_unreadable = 12
    with pipeline.make_eval_batches(config, local_batch_size=23) as batches:
        assert next(iter(batches))["mask"].sum() == 11
