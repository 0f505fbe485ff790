"""Weight files by suffix, damaged ones, the hub, and writing whole or not at all."""

import json
import os
import sys

import numpy as np
import pytest
from hostile_files import irregular

from evovit_jax.errors import UserError
from evovit_jax.weights.files import (
    fetch,
    read_tensors,
    stored_reduction,
    whole_or_nothing,
    write_tensors,
)

TENSORS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "count": np.asarray(3),
}


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors", "npz"])
def test_every_format_round_trips(tmp_path, suffix):
    path = str(tmp_path / "new" / f"w.{suffix}")
    write_tensors(path, TENSORS)
    found, notes = read_tensors(path)
    assert notes == []
    assert sorted(found) == sorted(TENSORS)
    for name, value in TENSORS.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    assert os.listdir(tmp_path / "new") == [f"w.{suffix}"]


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_truncated_files_end_in_one_line(tmp_path, suffix, share):
    path = tmp_path / f"w.{suffix}"
    write_tensors(str(path), TENSORS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"damaged") as caught:
        read_tensors(str(path))
    assert "\n" not in str(caught.value)


def safetensors(path, header, data=b"\0" * 24, length=None):
    text = json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return str(path)


@pytest.mark.parametrize(
    ("entry", "length"),
    [
        ({"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, 10**15),
        ({"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 24]}, None),
        ({"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 1024]}, None),
        ({"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 0]}, None),
        ({"dtype": "F32", "shape": [-2, 3], "data_offsets": [0, 24]}, None),
        ({"dtype": "F99", "shape": [2, 3], "data_offsets": [0, 24]}, None),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entry, length):
    path = safetensors(tmp_path / "w.safetensors", {"w": entry}, length=length)
    with pytest.raises(UserError, match="damaged") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, w=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=r"damaged or no \.npz file"):
        read_tensors(str(path))


def test_an_archive_that_unpacks_to_far_more_is_refused_unopened(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, w=np.zeros(25 << 20, np.float32))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"bomb\.npz unpacks to 10\d MB, a file of 0 MB: refused"):
        read_tensors(str(path))


def test_a_safetensors_file_says_what_reduction_it_is_for(tmp_path):
    with_one, without, damaged = (str(tmp_path / f"{name}.safetensors") for name in "abc")
    tensors = {"x": np.arange(3.0)}
    write_tensors(with_one, tensors, reduction="patch_slimming,kept=9:4:0")
    write_tensors(without, tensors)
    (tmp_path / "c.safetensors").write_bytes(b"\x08")
    os.mkfifo(tmp_path / "d.safetensors")
    assert stored_reduction(with_one) == "patch_slimming,kept=9:4:0"
    np.testing.assert_array_equal(read_tensors(with_one)[0]["x"], tensors["x"])
    for other in (without, damaged, "gone.safetensors", "hf://x/y.safetensors", "x.npz"):
        assert stored_reduction(other) is None
    assert stored_reduction(str(tmp_path / "d.safetensors")) is None


def test_names_are_checked(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_tensors(str(tmp_path / "none.pth"))
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"must end in one of \.pth"):
        read_tensors(str(tmp_path / "w.onnx"))
    with pytest.raises(UserError, match=r"must end in one of \.pth"):
        write_tensors(str(tmp_path / "w.onnx"), TENSORS)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "w.npz"
    target.write_text("before")

    def fail():
        with whole_or_nothing(str(target)) as temporary:
            with open(temporary, "w") as file:
                file.write("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["w.npz"]


def test_a_dtype_that_pytorch_lacks_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="PyTorch has no dtype complex64"):
        write_tensors(str(tmp_path / "w.pth"), {"w": np.zeros(2, np.complex64)})
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output .*file/w\.npz"):
        write_tensors(str(tmp_path / "file" / "w.npz"), TENSORS)


def cached_repository(cache, owner, name, file):
    """A repository in the hub's local cache, as its client lays it out."""
    folder = cache / f"models--{owner}--{name}"
    snapshot = folder / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123456789abcdef")
    write_tensors(str(snapshot / file), TENSORS)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The hub's client without a network, its cache in a folder of the test."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_hub_is_read_from_its_cache_when_offline(offline, file):
    cached_repository(offline, "timm", "deit_small_patch16_224.fb_in1k", file)
    found, _ = read_tensors("hf://timm/deit_small_patch16_224.fb_in1k")
    np.testing.assert_array_equal(found["w"], TENSORS["w"])


def write_shards(folder, places, **held):
    """An index at `folder` that says where tensors are, and the files that hold them."""
    for file, tensors in held.items():
        write_tensors(str(folder / f"{file}.safetensors"), tensors)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    return str(path)


def test_shards_are_read_as_one_file(tmp_path):
    one, two = {"a": np.ones(2, np.float32)}, {"b": np.zeros(3, np.float32)}
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    path = write_shards(tmp_path, places, one=one, two=two)
    found, notes = read_tensors(path)
    assert (sorted(found), notes) == (["a", "b"], [])
    with pytest.raises(UserError, match="its shards lack c"):
        read_tensors(write_shards(tmp_path, places | {"c": "two.safetensors"}))
    with pytest.raises(UserError, match=r"three\.safetensors: no such file"):
        read_tensors(write_shards(tmp_path, places | {"c": "three.safetensors"}))
    for file in ("../one.safetensors", "/etc/passwd", "one.json", 3):
        with pytest.raises(UserError, match="which is no weight file beside it"):
            read_tensors(write_shards(tmp_path, {"a": file}))
    (tmp_path / "model.safetensors.index.json").write_text("[1")
    with pytest.raises(UserError, match="is damaged or no index of shards"):
        read_tensors(path)


def test_shards_of_the_hub(offline):
    cached_repository(offline, "google", "siglip", "one.safetensors")
    snapshot = offline / "models--google--siglip" / "snapshots" / "0123456789abcdef"
    write_shards(snapshot, dict.fromkeys(TENSORS, "one.safetensors"))
    found, _ = read_tensors("hf://google/siglip")
    np.testing.assert_array_equal(found["w"], TENSORS["w"])
    write_shards(snapshot, dict.fromkeys(TENSORS, "two.safetensors"))
    with pytest.raises(UserError, match="hf://google/siglip: not found"):
        fetch("hf://google/siglip")


def test_a_named_file_of_the_hub(offline):
    cached_repository(offline, "someone", "weights", "v2.npz")
    assert fetch("hf://someone/weights/v2.npz").endswith("v2.npz")
    with pytest.raises(UserError, match=r"hf://someone/weights/v3\.npz: not found") as caught:
        fetch("hf://someone/weights/v3.npz")
    assert "\n" not in str(caught.value)


def test_the_hub_without_a_name_or_a_client(monkeypatch):
    with pytest.raises(UserError, match="say hf://OWNER/REPOSITORY"):
        fetch("hf://timm")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'evovit_jax\[hub\]'"):
        fetch("hf://timm/anything")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "zero", "null"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_what_is_no_regular_file_is_refused(kind, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.rename(irregular(tmp_path, kind), tmp_path / f"w{suffix}")
    with pytest.raises(UserError, match="it is no regular file"):
        read_tensors(str(tmp_path / f"w{suffix}"))


@pytest.mark.parametrize("path", ["~nosuchuser/w.pth", "x" * 5000 + ".pth", "a\0b.npz"])
def test_paths_that_nobody_has(path):
    with pytest.raises(UserError, match="weights"):
        read_tensors(path)
    with pytest.raises(UserError, match="output"), whole_or_nothing(path):
        pytest.fail("nothing can be written there")


@pytest.mark.parametrize("change", ["encrypted", "method"])
def test_an_npz_that_cannot_be_unpacked(tmp_path, change):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, w=np.zeros(1000, np.float32))
    data = bytearray(path.read_bytes())
    for at in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        if change == "encrypted":
            data[at] |= 1
        else:
            data[at + 2] = 99
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged or no \.npz"):
        read_tensors(str(path))
