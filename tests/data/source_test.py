"""The two kinds of sources, and every way of getting them wrong."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from evovit_jax.data import tfds_source
from evovit_jax.data.source import (
    Source,
    known_class_names,
    numbered_as,
    numbered_by,
    open_source,
)
from evovit_jax.errors import UserError


def jpeg(value: int = 0, size: tuple[int, int] = (10, 12)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "jpeg")
    return file.getvalue()


def write(path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def test_class_folders_are_sorted_and_numbered(tmp_path):
    write(tmp_path / "zebra/b.jpg", jpeg(2))
    write(tmp_path / "ant/deeper/a.JPEG", jpeg(1))
    write(tmp_path / "ant/notes.txt", "not an image")
    write(tmp_path / ".hidden/c.jpg", jpeg())
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ["ant", "zebra"]
    assert source.num_classes == 2
    assert [source[i]["label"] for i in range(len(source))] == [0, 1]
    assert source[1]["image"] == jpeg(2)
    assert source.describe(1).endswith("zebra/b.jpg")


@pytest.mark.parametrize("inside", ["", "images"])
def test_labels_csv_beside_the_images_or_their_folder(tmp_path, inside):
    write(tmp_path / inside / "x.jpg", jpeg(1))
    write(tmp_path / inside / "y.jpg", jpeg(2))
    write(tmp_path / "labels.csv", 'file,label,author\ny.jpg,7,"A, B"\nx.jpg,3,C\n')
    for path in (tmp_path, tmp_path / inside):
        source = open_source(f"folder:{path}")
        assert [source[i]["label"] for i in range(2)] == [7, 3]
        assert source[0]["image"] == jpeg(2)
        assert source.num_classes == 8


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,label\nx.jpg,1\n", "columns file and label"),
        ("", "columns file and label"),
        ("file,label\n", "lists no images"),
        ("file,label\nx.jpg,cat\n", "line 2: label 'cat'"),
        ("file,label\nx.jpg,-1\n", "line 2: label '-1'"),
        ("file,label\nx.jpg\n", "line 2: label None"),
        ("file,label\nx.jpg,1\ngone.jpg,1\n", "line 3: no file 'gone.jpg'"),
        (b"file,label\n\xff\xfe.jpg,1\n", "not a CSV file"),
    ],
)
def test_bad_labels_csv(tmp_path, table, message):
    write(tmp_path / "x.jpg", jpeg())
    write(tmp_path / "labels.csv", table)
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{tmp_path}")


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_source(f"folder:{tmp_path}/nowhere")
    with pytest.raises(UserError, match="neither class folders nor a labels"):
        open_source(f"folder:{tmp_path}")
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="hold no images"):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize("spec", ["digits", "", "tfds:", "folder:", "http://x/y"])
def test_unknown_kind(spec):
    with pytest.raises(UserError, match="say tfds:NAME"):
        open_source(spec)


def test_unknown_data_set_split_and_version(tmp_path):
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        open_source("tfds:cifra10", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"no such split .there are train, test"):
        open_source("tfds:digits:validation", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="no such split"):
        open_source("tfds:digits:train[", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"TFDS cannot open data set 'digits:9\.9\.9'"):
        open_source("tfds:digits:9.9.9", data_dir=str(tmp_path))


def test_a_data_set_that_tfds_cannot_prepare_says_why(tmp_path):
    with pytest.raises(UserError, match=r"could not prepare it there: .*manual"):
        open_source("tfds:imagenet2012", data_dir=str(tmp_path))


def test_folder_of_tfds(monkeypatch):
    monkeypatch.setenv("EVOVIT_DATA_DIR", "/elsewhere")
    assert tfds_source.folder("") == "/elsewhere"
    assert tfds_source.folder("/here") == "/here"
    monkeypatch.delenv("EVOVIT_DATA_DIR")
    assert tfds_source.folder("").endswith("tensorflow_datasets")


def test_imagenet_through_tfds():
    with tfds.testing.mock_data(num_examples=6):
        source = open_source("tfds:imagenet2012:validation")
        assert len(source) == 6
        assert source.num_classes == 1000
        assert source.class_names[0] == "n01440764"
        example = source[5]
        assert example["image"].dtype == np.uint8
        assert example["image"].shape[2] == 3
        assert 0 <= example["label"] < 1000
        assert tfds_source.default_eval_split("imagenet2012") == "validation"


def folders(root, *names):
    for value, name in enumerate(names):
        write(root / name / "x.jpg", jpeg(value))
    return open_source(f"folder:{root}")


def test_classes_keep_the_numbers_of_the_training(tmp_path):
    train = folders(tmp_path / "train", "ant", "bee", "cat")
    found = numbered_as(train, folders(tmp_path / "val", "cat", "ant"))
    assert isinstance(found, Source)
    labels = {found.describe(i).split("/")[-2]: found[i]["label"] for i in range(len(found))}
    assert labels == {"ant": 0, "cat": 2}
    assert found.num_classes == 3
    assert found[0]["image"] == jpeg(1)
    with pytest.raises(UserError, match=r"class folders that folder:.*train lacks: dog"):
        numbered_as(train, folders(tmp_path / "other", "ant", "dog"))


def test_numbers_without_names_are_left_as_they_are(tmp_path):
    train = folders(tmp_path / "train", "ant", "bee")
    write(tmp_path / "val/x.jpg", jpeg())
    write(tmp_path / "val/labels.csv", "file,label\nx.jpg,1\n")
    table = open_source(f"folder:{tmp_path / 'val'}")
    assert numbered_as(train, table) is table
    assert numbered_as(table, train) is train  # whatever a table's numbers stand for


def test_folders_named_as_a_models_classes(tmp_path):
    source = folders(tmp_path, "bee", "cat")
    found = numbered_by(["ant", "bee", "cat"], source)
    assert [found[i]["label"] for i in range(2)] == [1, 2]
    assert numbered_by(["x", "y"], source) is source
    with pytest.raises(UserError, match=r"2 class folders, the model 3 .* named cat: name the"):
        numbered_by(["ant", "bee", "dog"], source)


def test_renumbered_classes_still_have_names(tmp_path):
    """So that they can be numbered again, or refused."""
    found = numbered_by(["ant", "bee", "cat"], folders(tmp_path / "some", "bee", "cat"))
    assert found.has_names
    again = numbered_by(["cat", "bee", "ant"], found)
    assert [again[i]["label"] for i in range(2)] == [1, 0]
    with pytest.raises(UserError, match=r"class folders that .* lacks: ant"):
        numbered_as(folders(tmp_path / "other", "bee", "cat"), found)


def test_class_names_at_hand(tmp_path):
    folders(tmp_path / "data", "bee", "ant")
    assert known_class_names(f"folder:{tmp_path / 'data'}") == ["ant", "bee"]
    write(tmp_path / "table/x.jpg", jpeg())
    write(tmp_path / "table/labels.csv", "file,label\nx.jpg,1\n")
    assert known_class_names(f"folder:{tmp_path / 'table'}") == ["0", "1"]
    assert known_class_names(f"folder:{tmp_path / 'nowhere'}") is None
    assert known_class_names("tfds:cifar10", str(tmp_path)) is None
    open_source("tfds:digits", data_dir=str(tmp_path))
    assert known_class_names("tfds:digits", str(tmp_path)) == [str(i) for i in range(10)]


def test_an_id_is_no_label(tmp_path):
    write(tmp_path / "x.jpg", jpeg())
    write(tmp_path / "labels.csv", "file,label\nx.jpg,4000000000\n")
    with pytest.raises(UserError, match=r"labels.csv: label 4000000000 .* number the classes"):
        open_source(f"folder:{tmp_path}")
