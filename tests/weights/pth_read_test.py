"""`.pth` files without PyTorch: both formats, what is refused, and files that are damaged.

Also tests weights/pth_write.py, by reading what it writes.
"""

import contextlib
import io
import pathlib
import pickle
import struct
import zipfile
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

from evovit_jax.errors import UserError
from evovit_jax.weights import pth_read
from evovit_jax.weights.files import read_tensors
from evovit_jax.weights.pth_read import LEGACY_MAGIC, LEGACY_PROTOCOL, Tensor, read_pth
from evovit_jax.weights.pth_write import write_pth

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.half": np.ones((2,), np.float16),
    "a.brain": np.arange(4).astype(ml_dtypes.bfloat16),
    "a.count": np.asarray(375_300),
    "a.flag": np.array([True, False]),
    "a.empty": np.zeros((0, 4), np.float32),
}


def written(tmp_path, tensors=TENSORS):
    path = tmp_path / "weights.pth"
    write_pth(str(path), tensors)
    return path


def archive(path, data, storages=None, root="archive"):
    """A zip archive with this pickle, as PyTorch lays it out."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{root}/data.pkl", data)
        for key, values in (storages or {}).items():
            file.writestr(f"{root}/data/{key}", values)
    return str(path)


class Reference:
    """Pickles as a call of a global that need not exist here."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Pickler(pickle._Pickler):
    """Writes `Reference` by name, and `Storage` as a persistent id."""

    def save_reference(self, value):
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        if value.arguments:
            self.save(value.arguments)
            self.write(pickle.REDUCE)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, Reference: save_reference}

    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None


class Storage:
    def __init__(self, key, count, kind="FloatStorage", *rest):
        self.pid = ("storage", Reference("torch", kind), key, "cpu", count, *rest)


def tensor(storage, size, stride, offset=0):
    ordered = Reference("collections", "OrderedDict", ())
    parts = (storage, offset, size, stride, False, ordered)
    return Reference("torch._utils", "_rebuild_tensor_v2", *parts)


def pickled(value):
    file = io.BytesIO()
    pickler = Pickler(file, 2)
    pickler.dump(value)
    return file.getvalue()


def test_what_is_written_is_read(tmp_path):
    found = read_pth(str(written(tmp_path)))
    assert list(found) == list(TENSORS)
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_the_same_tensors_make_the_same_file(tmp_path):
    first = written(tmp_path).read_bytes()
    assert written(tmp_path).read_bytes() == first


def test_views_of_a_storage_are_read(tmp_path):
    values = np.arange(12, dtype="<f4")
    shared = {
        "whole": tensor(Storage("0", 12), (3, 4), (4, 1)),
        "transposed": tensor(Storage("0", 12), (4, 3), (1, 4)),
        "row": tensor(Storage("0", 12), (4,), (1,), offset=4),
    }
    found = read_pth(archive(tmp_path / "a.pth", pickled(shared), {"0": values.tobytes()}))
    np.testing.assert_array_equal(found["whole"], values.reshape(3, 4))
    np.testing.assert_array_equal(found["transposed"], values.reshape(3, 4).T)
    np.testing.assert_array_equal(found["row"], values[4:8])


def test_a_checkpoint_gives_its_weights_without_its_other_objects(tmp_path):
    state = {"module.w": tensor(Storage("0", 2), (2,), (1,))}
    saved = {
        "epoch": 3,
        "args": Reference("argparse", "Namespace", "anything"),
        "model": state,
        "model_ema": dict(state),
    }
    data = np.array([1, 2], "<f4").tobytes()
    found, notes = read_tensors(archive(tmp_path / "c.pth", pickled(saved), {"0": data}))
    assert list(found) == ["w"]  # the prefix of DistributedDataParallel is gone
    assert notes == ["it also has 'model_ema'; 'model' is used"]


def legacy(path, *, count=4, magic=LEGACY_MAGIC, endian=True):
    """The format before PyTorch 1.6: pickles one after another, then the storages."""
    state = {"w": tensor(Storage("7", 4, "FloatStorage", None), (2, 2), (2, 1))}
    parts = [magic, LEGACY_PROTOCOL, {"little_endian": endian}]
    data = b"".join(map(pickled, parts)) + pickled(state) + pickled(["7"])
    path.write_bytes(data + struct.pack("<q", count) + np.arange(4, dtype="<f4").tobytes())
    return str(path)


def test_the_format_before_zip_archives(tmp_path):
    found = read_pth(legacy(tmp_path / "old.pth"))
    np.testing.assert_array_equal(found["w"], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 9}, "9 values instead of 4"),
        ({"count": -4}, "-4 values instead of 4"),
        ({"magic": 1}, "no file of torch.save"),
        ({"endian": False}, "big-endian"),
    ],
)
def test_damaged_files_of_that_format(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_pth(legacy(tmp_path / "old.pth", **changes))


class Attack:
    """Runs a command when an ordinary unpickler loads it."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("kind", ["plain", "zip", "legacy"])
def test_code_is_refused_before_it_runs(tmp_path, kind):
    target, path = tmp_path / "executed", tmp_path / "evil.pth"
    data = pickle.dumps({"model": Attack(target)})
    if kind == "zip":
        archive(path, data)
    else:
        before = [LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True}]
        head = b"".join(map(pickled, before)) if kind == "legacy" else b""
        path.write_bytes(head + data)
    with pytest.raises(UserError, match=r"it names (posix|nt)\.system.*refused") as caught:
        read_pth(str(path))
    assert "\n" not in str(caught.value)
    assert not target.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["evil.pth"]


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__"])
def test_builtins_are_refused(tmp_path, name):
    data = pickled({"model": Reference("builtins", name, "1 + 1")})
    with pytest.raises(UserError, match=rf"it names builtins\.{name}"):
        read_pth(archive(tmp_path / "evil.pth", data))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor(Storage("0", 2), (3,), (1,)), "beyond the end of its storage"),
        (tensor(Storage("0", 2), (2,), (1,), offset=1), "beyond the end of its storage"),
        (tensor(Storage("0", 2), (10**12,), (0,)), "more values than its storage"),
        (tensor(Storage("0", 2), (2,), (-1,)), "not made of a storage"),
        (tensor(Storage("0", 2), (2, 2), (1,)), "not made of a storage"),
        (tensor("0", (2,), (1,)), "not made of a storage"),
        (tensor(Storage("0", 99), (2,), (1,)), "8 bytes instead of 396"),
        (tensor(Storage("5", 2), (2,), (1,)), "damaged"),
        ([1, 2], "holds no state dict"),
        ({"model": 3}, "holds no state dict"),
    ],
)
def test_tensors_that_lie_are_refused(tmp_path, value, message):
    data = pickled({"w": value} if isinstance(value, Reference) else value)
    path = archive(tmp_path / "w.pth", data, {"0": np.zeros(2, "<f4").tobytes()})
    with pytest.raises(UserError, match=message) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_programs_and_strange_archives_are_refused(tmp_path):
    path = tmp_path / "script.pt"
    archive(path, pickled({}))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/code/model.py", "pass")
    with pytest.raises(UserError, match="TorchScript program"):
        read_pth(str(path))
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as file:
        file.writestr("holiday.jpg", b"")
    with pytest.raises(UserError, match="not one that PyTorch wrote"):
        read_pth(str(tmp_path / "photos.pth"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_end_in_one_line(tmp_path, share):
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"weights\.pth") as caught:
        read_pth(str(path))
    assert "\n" not in str(caught.value)


def test_any_flipped_byte_of_the_pickle_gives_an_answer_or_one_line(tmp_path):
    path = written(tmp_path)
    whole = bytearray(path.read_bytes())
    start = whole.index(b"\x80\x02")  # the pickle, behind the name of its entry
    messages = []
    for place in range(start, start + 200):
        damaged = bytearray(whole)
        damaged[place] ^= 0x15
        other = pathlib.Path(tmp_path / "damaged.pth")
        other.write_bytes(bytes(damaged))
        with contextlib.suppress(UserError):
            read_pth(str(other))
            continue
        with pytest.raises(UserError) as caught:
            read_pth(str(other))
        messages.append(str(caught.value))
    assert len(messages) > 100  # the archive's checksum finds them
    assert not any("\n" in message for message in messages)


def test_a_list_of_lists_of_lists_is_visited_once(tmp_path):
    """30 lists, each twice in the next: a thousand million ways through half a kilobyte."""
    nested = []
    for _ in range(30):
        nested = [nested, nested]
    path = archive(tmp_path / "w.pth", pickled({"args": nested, "epoch": 3}))
    with pytest.raises(UserError, match="holds no state dict"):
        read_tensors(path)


def test_many_tensors_over_one_storage_are_counted(tmp_path):
    count = 100_000
    tied = {f"w{i}": tensor(Storage("0", count), (count,), (1,)) for i in range(400)}
    path = archive(tmp_path / "w.pth", pickled(tied), {"0": np.zeros(count, "<f4").tobytes()})
    with pytest.raises(UserError, match=r"tensors of \d+ MB, a file of 0 MB: refused") as caught:
        read_pth(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", ["data.pkl", "byteorder"])
def test_an_archive_that_unpacks_to_far_more_is_refused_unopened(tmp_path, entry):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled({}))
    with zipfile.ZipFile(path, "a" if entry != "data.pkl" else "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"archive/{entry}", b"\0" * (100 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"unpacks to 10\d MB, a file of 0 MB: refused"):
        read_pth(str(path))


def test_a_place_in_the_memo_costs_no_memory(tmp_path):
    """An unpickler that keeps a list of all places up to this one would need 16 GB."""
    data = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.LONG_BINPUT
    data += struct.pack("<I", 2**31 - 2) + pickle.STOP
    with pytest.raises(UserError, match="holds no state dict"):
        read_tensors(archive(tmp_path / "w.pth", data))


def opcodes(*parts):
    """A pickle written by hand: opcodes, and small values as `pickle` writes them."""
    return b"\x80\x02" + b"".join(parts) + pickle.STOP


def nested_tuples(depth=60):
    """A tuple that holds the one below twice, 2^60 in all, in three bytes each."""
    return pickle.EMPTY_TUPLE + (pickle.DUP + pickle.TUPLE2) * depth


DICT = b"ccollections\nOrderedDict\n"
SLOW = {
    "key": pickle.EMPTY_DICT + nested_tuples() + pickle.NONE + pickle.SETITEM,
    "keys": pickle.EMPTY_DICT + pickle.MARK + nested_tuples() + pickle.NONE + pickle.SETITEMS,
    "dict": pickle.MARK + nested_tuples() + pickle.NONE + pickle.DICT,
    "pairs": DICT + pickle.MARK + nested_tuples() + pickle.NONE + pickle.TUPLE
    + pickle.TUPLE1 + pickle.TUPLE1 + pickle.REDUCE,
    "set": pickle.EMPTY_SET + pickle.MARK + nested_tuples() + pickle.ADDITEMS,
    "frozenset": pickle.MARK + nested_tuples() + pickle.FROZENSET,
    "storage": pickle.MARK + b"U\x07storage" + b"ctorch\nFloatStorage\n" + nested_tuples()
    + pickle.NONE + b"K\x01" + pickle.TUPLE + pickle.BINPERSID,
    "copies": pickle.EMPTY_LIST + pickle.MARK + pickle.NONE * 20_000 + pickle.APPENDS
    + pickle.TUPLE1 + b"q\x00" + (b"ctorch\nSize\n" + b"h\x00" + pickle.REDUCE) * 1000,
    "objects": pickle.EMPTY_LIST * (1 << 16),
    "line": b"I" + b"1" * (1 << 16) + b"\n",
    "frame": pickle.FRAME + struct.pack("<Q", 1 << 40),
    "bytes": pickle.BINBYTES8 + struct.pack("<Q", 1 << 40),
    "dimensions": b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + pickle.NONE + b"K\x00"
    + (pickle.MARK + b"J\xff\xff\xff\x7f" * 2000 + pickle.TUPLE) * 2 + pickle.TUPLE
    + pickle.REDUCE,
}  # fmt: skip


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_small_pickle_takes_neither_hours_nor_gigabytes(tmp_path, kind, legacy, monkeypatch):
    """Hashing a tuple looks through all of it, again wherever a part of it is shared."""
    monkeypatch.setattr(pth_read, "MOST_PICKLE", 1 << 15)
    path = tmp_path / "w.pth"
    if legacy:
        head = b"".join(map(pickled, [LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True}]))
        path.write_bytes(head + opcodes(SLOW[kind]))
    else:
        archive(path, opcodes(SLOW[kind]))
    with pytest.raises(UserError, match=r"w\.pth(: | is )"):
        read_pth(str(path))


@pytest.mark.parametrize("state", [{"size": (9,)}, (None, {"array": 3})])
@pytest.mark.parametrize("made", [True, False])
def test_attributes_of_a_tensor_or_its_class_are_not_set(tmp_path, state, made):
    """Strides that were checked could be others afterwards, and read beyond the storage."""
    if made:
        target = pickled(tensor(Storage("0", 2), (2,), (1,)))[2:-1]
    else:
        target = b"ctorch._utils\n_rebuild_tensor_v2\n"
    data = opcodes(target, pickled(state)[2:-1], pickle.BUILD)
    path = archive(tmp_path / "w.pth", data, {"0": np.zeros(2, "<f4").tobytes()})
    with pytest.raises(UserError, match="attributes of what has none"):
        read_pth(path)
    assert callable(Tensor.array)


def test_what_pytorch_sets_on_a_state_dict_does_not_matter(tmp_path):
    value = Reference("collections", "OrderedDict", [["w", tensor(Storage("0", 2), (2,), (1,))]])
    data = opcodes(pickled(value)[2:-1], pickled({"_metadata": {"": {"version": 1}}})[2:-1])
    data = data[:-1] + pickle.BUILD + pickle.STOP
    found = read_pth(archive(tmp_path / "w.pth", data, {"0": np.ones(2, "<f4").tobytes()}))
    np.testing.assert_array_equal(found["w"], [1, 1])


@pytest.mark.parametrize("change", ["encrypted", "method", "deflated"])
def test_archives_that_zipfile_cannot_unpack(tmp_path, change):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled({"a": [1] * 1000}))
    data = bytearray(path.read_bytes())
    for at in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        if change == "encrypted":
            data[at] |= 1
        elif change == "method":
            data[at + 2] = 99
    if change == "deflated":
        data[60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged") as caught:
        read_pth(str(path))
    assert "\n" not in str(caught.value)
