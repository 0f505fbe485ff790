"""What classes are called."""

import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny import tiny_config

from evovit_jax.errors import UserError
from evovit_jax.inference.class_names import class_names
from evovit_jax.workdir import class_names as kept_names
from evovit_jax.workdir import config_file


def test_imagenet_has_a_thousand_different_names():
    names = class_names(1000)
    assert len(set(names)) == 1000
    places = {0: "tench", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {i: names[i] for i in places} == places
    assert names[134] != names[517]  # two kinds of crane


def test_names_of_other_classes(tmp_path):
    assert class_names(2) == ["class 0", "class 1"]
    file = tmp_path / "names.txt"
    file.write_text("cat\ndog\n")
    assert class_names(2, file=str(file)) == ["cat", "dog"]
    with pytest.raises(UserError, match="2 lines for 3 classes"):
        class_names(3, file=str(file))
    with pytest.raises(UserError, match="cannot read class names"):
        class_names(3, file=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="this model has no classes"):
        class_names(0)


def test_a_run_with_more_classes_than_its_data_has_the_names_that_there_are(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / "x.png")
    config = tiny_config(data=f"folder:{tmp_path / 'data'}")
    with config_file.kept(tmp_path / "run", config):
        pass
    weights = str(tmp_path / "run")
    assert class_names(4, weights=weights) == ["ant", "bee", "class 2", "class 3"]
    assert class_names(1, weights=weights) == ["class 0"]


def test_nothing_is_downloaded_for_names(tmp_path, monkeypatch):
    """A run whose data is not on this machine: its own names, or numbers for an older run."""
    asked = []
    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", lambda *_, **__: asked.append("download")
    )
    config = tiny_config(data="tfds:cifar10", data_dir=str(tmp_path / "nowhere"))
    with config_file.kept(tmp_path / "run", config):
        pass
    weights = str(tmp_path / "run")
    assert class_names(10, weights=weights) == [f"class {i}" for i in range(10)]
    kept_names.write(tmp_path / "run", [f"kind {i}" for i in range(10)])
    assert class_names(10, weights=weights) == [f"kind {i}" for i in range(10)]
    assert asked == []
