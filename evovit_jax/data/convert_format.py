"""Copies a TFDS data set from tfrecord to array_record files, which can be read at random.

    python -m evovit_jax.data.convert_format --data=tfds:imagenet2012 --data_dir=DIR --output=DIR2

Once, without TensorFlow: the records themselves are copied as they are. DIR2 is then the runs'
data_dir; one folder cannot hold a data set in two formats.
"""

import json
import os
import pathlib
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tqdm import tqdm

from evovit_jax.data import tfds_source, workers
from evovit_jax.data.spec import DataSpec
from evovit_jax.errors import Parser, UserError, first_line, run_command

FORMAT = "array_record"
# A record of a tfrecord file: its length, a checksum of that, the bytes, a checksum of them.
_HEAD, _TAIL = struct.Struct("<QI"), struct.Struct("<I")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="tfds:NAME, tfds:NAME/CONFIG:VERSION")
    parser.add_argument("--data_dir", default="", help="where the data set lies")
    parser.add_argument("--output", required=True, help="the new data_dir")
    flags = parser.parse_args(arguments)
    spec = DataSpec.parse(flags.data)
    if spec.kind != "tfds":
        raise UserError(f"--data={flags.data!r}: say tfds:NAME")
    print(f"wrote {convert(spec.name, flags.data_dir, flags.output)}")
    return 0


def convert(name: str, data_dir: str, output: str) -> pathlib.Path:
    """Writes all splits of a data set below `output`; returns the folder of its version.

    Raises:
        UserError: no such data set in `data_dir`, it is no tfrecord, or `output` holds it already.
    """
    builder = _open(name, tfds_source.folder(data_dir))
    target = pathlib.Path(output).expanduser() / builder.info.full_name
    if target.exists():
        raise UserError(f"{target} exists already: remove it, or choose another --output")
    # A name that no reader takes for a data set, until all of it is there.
    unfinished = target.with_name(f"incomplete.{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for file in pathlib.Path(builder.data_path).iterdir():
        if file.suffix in (".json", ".txt"):
            shutil.copy(file, unfinished / file.name)
    jobs = [
        (pathlib.Path(path), unfinished / pathlib.Path(path).name.replace("tfrecord", FORMAT), size)
        for split in builder.info.splits.values()
        for path, size in zip(split.filepaths, split.shard_lengths, strict=True)
    ]
    with ThreadPoolExecutor(workers.cores()) as pool:
        for _ in tqdm(pool.map(lambda job: _copy(*job), jobs), total=len(jobs), unit="file"):
            pass
    info = unfinished / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": FORMAT}, indent=2))
    os.rename(unfinished, target)
    return target


def _open(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except Exception as error:  # whatever the data set's own code raises
        raise UserError(f"TFDS cannot open data set {name!r}: {first_line(error)}") from error
    if not builder.is_prepared():
        raise UserError(f"data set {name!r} is not in {data_dir!r}: there is nothing to convert")
    stored = builder.info.file_format.value
    if stored != "tfrecord":
        raise UserError(f"data set {name!r} in {data_dir!r} is stored as {stored}, not as tfrecord")
    return builder


def _copy(source: pathlib.Path, target: pathlib.Path, size: int) -> None:
    """One file, record by record; TFDS's own writers also make groups of one record."""
    writer = array_record_module.ArrayRecordWriter(str(target), "group_size:1")
    count = 0
    for record in read_tfrecord(source):
        writer.write(record)
        count += 1
    writer.close()
    if count != size:
        raise UserError(f"{source} holds {count} records, its data set says {size}")


def read_tfrecord(path: pathlib.Path) -> Iterator[bytes]:
    """The records of an uncompressed tfrecord file. Checksums are not checked, lengths are.

    Raises:
        UserError: the file is cut off.
    """
    with open(path, "rb") as file:
        while head := file.read(_HEAD.size):
            length = _HEAD.unpack(head)[0] if len(head) == _HEAD.size else -1
            record = file.read(length) if length >= 0 else b""
            if len(record) != length or len(file.read(_TAIL.size)) != _TAIL.size:
                raise UserError(f"{path} is damaged: its last record is not complete")
            yield record


if __name__ == "__main__":
    run_command(main)
