"""The two kinds of sources, and every way of getting them wrong."""

import io
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from evovit_jax.config import get_config
from evovit_jax.data import pipeline, tfds_source
from evovit_jax.data.source import (
    Drawn,
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


def test_images_alone_have_no_labels_where_none_are_needed(tmp_path):
    write(tmp_path / "b.jpg", jpeg(2))
    write(tmp_path / "a.PNG", jpeg(1))
    write(tmp_path / ".hidden.jpg", jpeg())
    write(tmp_path / "notes.txt", "not an image")
    source = open_source(f"folder:{tmp_path}", labels_needed=False)
    assert [source[i] for i in range(len(source))] == [
        {"image": jpeg(1), "label": -1}, {"image": jpeg(2), "label": -1},
    ]  # fmt: skip
    assert (source.num_classes, source.has_names) == (0, False)
    with pytest.raises(UserError, match="neither class folders nor a labels"):
        open_source(f"folder:{tmp_path}")
    write(tmp_path / "labels.csv", "file,label\nb.jpg,4\n")
    source = open_source(f"folder:{tmp_path}", labels_needed=False)
    assert [source[i]["label"] for i in range(len(source))] == [4]


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


def test_examples_are_drawn_by_chance_and_the_same_again(tmp_path):
    source = folders(tmp_path, *"abcdefgh")
    drawn, again = Drawn(source, 5), Drawn(source, 5)
    labels = [drawn[i]["label"] for i in range(5)]
    assert len(drawn) == len(set(labels)) == 5
    assert labels != sorted(labels)
    assert labels == [again[i]["label"] for i in range(5)]
    assert drawn.class_names == source.class_names
    assert f"/{source.class_names[labels[2]]}/" in drawn.describe(2)
    assert len(Drawn(source, 99)) == 8


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


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n../out.jpg,1\n", "line 2: '../out.jpg' is outside"),
        ("file,label\nsub/../../out.jpg,1\n", "is outside"),
        ("file,label\n/etc/passwd,1\n", "'/etc/passwd' is outside"),
        ("file,label\nx.jpg,1\n./x.jpg,2\n", "line 3: 'x.jpg' is of 2, in line 2 of 1"),
        ("file,label,label\nx.jpg,1,2\n", "names the column label twice"),
        ("file,file,label\nx.jpg,y.jpg,1\n", "names the column file twice"),
        ("file,label\nx.jpg,1,2\n", "line 2 has more cells"),
        ("file,label\nsub,1\n", "no file 'sub'"),
        ("file,label\n.,1\n", "no file '.'"),
        ("file,label\n,1\n", "no file ''"),
        ("file,label\npipe.jpg,1\n", "no file 'pipe.jpg'"),
        ("file,label\nzero.jpg,1\n", "no file 'zero.jpg'"),
        ("file,label\ndangling.jpg,1\n", "no file 'dangling.jpg'"),
        ("file,label\nloop.jpg,1\n", "no file 'loop.jpg'"),
        ("file,label\nlabels.csv,1\n", "no file 'labels.csv'"),
        ("file,label\n./labels.csv,1\n", "no file './labels.csv'"),
        ("file,label\nx.jpg," + "9" * 5000 + "\n", "more than 1000000 classes"),
        ("file,label\nx.jpg,1000000\n", "more than 1000000 classes"),
        ("file,label\nx.jpg,0x1\n", "label '0x1' is not a whole number"),
        ("file,label\nx.jpg,1e3\n", "label '1e3' is not a whole number"),
        ("file,label\nx.jpg,\u0663\n", "is not a whole number"),
        ("file,label\nsub/" + "x" * 5000 + ",1\n", "no file 'sub/xxx"),
        ("file,label\nx\0.jpg,1\n", "no file|line contains NUL"),
        ('file,label\n"x\ny.jpg",1\n', r"no file 'x.+ny.jpg'"),
        ("file,label\n" + "x" * 70_000, "a line of 65536 characters"),
    ],
)
def test_the_policy_of_labels_csv(tmp_path, table, message):
    write(tmp_path / "out.jpg", jpeg())
    folder = tmp_path / "data"
    write(folder / "x.jpg", jpeg())
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    for name, target in (("zero", "/dev/zero"), ("dangling", "/nowhere"), ("loop", "loop.jpg")):
        (folder / f"{name}.jpg").symlink_to(target)
    write(folder / "labels.csv", table)
    with pytest.raises(UserError, match=message) as error:
        open_source(f"folder:{folder}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 1000


def test_a_table_without_an_end_is_not_read_whole(tmp_path):
    with open(tmp_path / "labels.csv", "wb") as file:
        file.write(b"file,label\n")
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="cannot be read: it has 1048576 MB, more than 1024"):
        open_source(f"folder:{tmp_path}")


def test_a_file_listed_twice_with_one_label_counts_twice_and_links_are_followed(tmp_path):
    write(tmp_path / "elsewhere.jpg", jpeg(5))
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/x.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    write(tmp_path / "data/labels.csv", "file,label\nsub/x.jpg,0\nsub//x.jpg,00\n")
    source = open_source(f"folder:{tmp_path}/data")
    assert [source[i] for i in range(2)] == [{"image": jpeg(5), "label": 0}] * 2


def test_labels_that_nothing_has_are_said(tmp_path, caplog):
    write(tmp_path / "x.jpg", jpeg())
    write(tmp_path / "labels.csv", "file,label\nx.jpg,3\n")
    open_source(f"folder:{tmp_path}")
    assert "3 of 4 classes have no image, first 0" in caplog.text


def test_a_training_with_far_more_classes_than_images_is_asked_for(tmp_path):
    write(tmp_path / "x.jpg", jpeg())
    write(tmp_path / "labels.csv", "file,label\nx.jpg,500000\n")
    config = get_config()
    config.data = f"folder:{tmp_path}"
    with pytest.raises(UserError, match=r"1 images and labels up to 500000: .*num_classes=500001"):
        pipeline.train_source(config)
    config.model.num_classes = 500_001
    assert pipeline.train_source(config).num_classes == 500_001


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 5000, "a\0b"])
def test_folders_that_cannot_be(path):
    with pytest.raises(UserError, match="data folder"):
        open_source(f"folder:{path}")
    with pytest.raises(UserError, match="data folder"):
        known_class_names(f"folder:{path}")
    with pytest.raises(UserError, match="data_dir"):
        open_source("tfds:digits", data_dir=path)


def test_records_that_are_damaged_or_have_no_label(monkeypatch):
    with tfds.testing.mock_data(num_examples=2):
        source = open_source("tfds:imagenet2012:validation")
    monkeypatch.setattr(source, "_data", [{"image": jpeg(), "label": -1}, {"image": jpeg()}])
    with pytest.raises(UserError, match=r"example 0 has the label -1, .*choose a split that has"):
        source[0]
    with pytest.raises(OSError, match="the record is damaged"):
        source[1]
