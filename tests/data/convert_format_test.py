"""tfrecord data sets: a message that says what to do, and the conversion that it names."""

import json
import pathlib
import shutil
import struct

import pytest
from array_record.python import array_record_data_source

from evovit_jax.data import convert_format
from evovit_jax.data.digits import prepare_digits
from evovit_jax.data.source import open_source
from evovit_jax.errors import UserError


@pytest.fixture(scope="module")
def array_records(tmp_path_factory):
    """The digits, as they are."""
    folder = tmp_path_factory.mktemp("array_record")
    prepare_digits(str(folder))
    return folder


@pytest.fixture
def tfrecords(array_records, tmp_path):
    """The same data set under another name in tfrecord files, as TFDS lays them out."""
    folder = tmp_path / "tfrecord"
    version = folder / "scans/1.0.0"
    shutil.copytree(array_records / "digits/1.0.0", version)
    for path in version.glob("*array_record*"):
        records = array_record_data_source.ArrayRecordDataSource([str(path)])
        name = path.name.replace("array_record", "tfrecord").replace("digits", "scans")
        with open(version / name, "wb") as file:
            for index in range(len(records)):
                record = records[index]
                file.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))
        path.unlink()
    info = version / "dataset_info.json"
    text = json.loads(info.read_text()) | {"fileFormat": "tfrecord", "name": "scans"}
    info.write_text(json.dumps(text))
    return folder


def test_the_message_names_the_command(tfrecords):
    with pytest.raises(UserError) as error:
        open_source("tfds:scans:train", data_dir=str(tfrecords))
    assert "stored as tfrecord, which cannot be read at random" in str(error.value)
    assert "python -m evovit_jax.data.convert_format --data=tfds:scans" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_conversion_keeps_every_record(tfrecords, array_records, tmp_path):
    output = tmp_path / "converted"
    arguments = ["--data=tfds:scans", f"--data_dir={tfrecords}", f"--output={output}"]
    assert convert_format.main(arguments) == 0
    for split, size in (("train", 1437), ("test", 360)):
        want = open_source(f"tfds:digits:{split}", data_dir=str(array_records))
        got = open_source(f"tfds:scans:{split}", data_dir=str(output))
        assert len(got) == len(want) == size
        assert all(got[i] == want[i] for i in range(size))
        assert got.class_names == want.class_names
    with pytest.raises(UserError, match="exists already"):
        convert_format.main(arguments)


def test_what_is_refused(tfrecords, array_records, tmp_path):
    def convert(data: str, folder: pathlib.Path) -> None:
        convert_format.main([f"--data={data}", f"--data_dir={folder}", f"--output={tmp_path}/new"])

    with pytest.raises(UserError, match="say tfds:NAME"):
        convert("folder:/somewhere", tfrecords)
    with pytest.raises(UserError, match="cannot open data set"):
        convert("tfds:no_such_set", tfrecords)
    with pytest.raises(UserError, match="nothing to convert"):
        convert("tfds:mnist", tfrecords)
    with pytest.raises(UserError, match="stored as array_record, not as tfrecord"):
        convert("tfds:digits", array_records)


def test_a_damaged_file_is_named_and_leaves_nothing_behind(tfrecords, tmp_path):
    path = next((tfrecords / "scans/1.0.0").glob("*train.tfrecord*"))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"train\.tfrecord.* is damaged"):
        convert_format.convert("scans", str(tfrecords), str(tmp_path / "new"))
    assert not (tmp_path / "new/scans/1.0.0").exists()


def test_a_file_with_too_few_records_is_named(tfrecords, tmp_path):
    info = tfrecords / "scans/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace('"360"', '"361"'))
    with pytest.raises(UserError, match="holds 360 records, its data set says 361"):
        convert_format.convert("scans", str(tfrecords), str(tmp_path / "new"))


def test_records_that_tensorflow_wrote(tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    records = [b"", b"one", bytes(range(256)) * 500]
    path = tmp_path / "some.tfrecord"
    with tensorflow.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    assert list(convert_format.read_tfrecord(path)) == records
