"""Mutated weight files, each read into a tiny model: right, or refused in one line.

    python tests/weight_fuzz.py --cases=10000 --seed=0

Prints one line of JSON: how many were loaded, how many refused, by kind; the longest took how many
seconds; by how many MB the process grew; what else happened, with its traceback. In a process of
its own, with limits: 20 s a file, and 4 GB of address space for all.
"""

import collections
import io
import pathlib
import pickle
import random
import shutil
import struct
import tempfile
import time
import traceback
import zipfile

import numpy as np
from mutations import TooLong, command, limited, mutated, peak_mb

from evovit_jax.errors import UserError
from evovit_jax.models import create_model
from evovit_jax.weights import save_weights, to_torch
from evovit_jax.weights.files import write_tensors
from evovit_jax.weights.load_save import load
from evovit_jax.weights.pth_read import LEGACY_MAGIC, LEGACY_PROTOCOL
from evovit_jax.weights.pth_write import _pickled

SECONDS, SPACE = 20, 4 << 30
TINY = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
DTYPES = ["f2", "f4", "f8", "i1", "i8", "u1", "?", "c8", "U3", "S4", "M8[s]", "f4,f4"]
# One file of many is an export, which takes a hundred times as long to read.
EXPORTS_EVERY = 40


def tiny_model():
    return create_model("deit_tiny_patch16_224", "none", num_classes=3, **TINY)


def mutated_zip(data: bytes, rng: random.Random) -> bytes:
    """An archive with one of its files changed, so that its checksums are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = rng.choice(old.namelist()[:2] + old.namelist())
        for info in old.infolist():
            content = old.read(info)
            if info.filename == chosen:
                content = mutated(content, rng)
            kind = rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
            new.writestr(info.filename, content, kind)
    return out.getvalue()


def mutated_tensors(tensors: dict, rng: random.Random) -> dict:
    """Tensors of which some have another name, shape, dtype or value."""
    tensors = dict(tensors)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(tensors))
        value = tensors[name]
        kind = rng.randrange(6)
        if kind == 0:
            tensors[rng.choice([name + ".0", "", "module." + name, "é\n"])] = tensors.pop(name)
        elif kind == 1:
            shape = [rng.choice([0, 1, 2, 3, 8]) for _ in range(rng.randint(0, 5))]
            tensors[name] = np.zeros(shape, np.float32)
        elif kind == 2:
            with np.errstate(all="ignore"):
                tensors[name] = np.zeros(value.shape, rng.choice(DTYPES))
        elif kind == 3:
            tensors[name] = value.swapaxes(0, -1) if value.ndim else value[None]
        elif kind == 4:
            tensors[name] = np.full_like(value, rng.choice([np.nan, np.inf, 3e38]))
        elif len(tensors) > 1:
            del tensors[name]
    return tensors


def legacy(tensors: dict) -> bytes:
    """The format before zip archives."""
    head = (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True})
    keys = [str(number) for number in range(len(tensors))]
    parts = [*(pickle.dumps(part, 2) for part in head), _pickled(tensors), pickle.dumps(keys, 2)]
    for value in tensors.values():
        parts += [struct.pack("<q", value.size), np.asarray(value, order="C").tobytes()]
    return b"".join(parts)


class Corpus:
    """Files to be changed, and a place for the changed ones."""

    def __init__(self, folder: pathlib.Path, rng: random.Random):
        self.folder, self._rng = folder, rng
        self._tensors = to_torch(tiny_model())
        self._files = {".legacy.pth": legacy(self._tensors)}
        for suffix in (".pth", ".npz", ".safetensors"):
            write_tensors(str(folder / f"whole{suffix}"), self._tensors)
            self._files[suffix] = (folder / f"whole{suffix}").read_bytes()
        np.savez_compressed(folder / "whole.npz", **self._tensors)
        self._files[".packed.npz"] = (folder / "whole.npz").read_bytes()
        save_weights(tiny_model(), folder / "export")

    def next(self, number: int) -> tuple[str, pathlib.Path]:
        """The kind and the path of a changed file."""
        if number % EXPORTS_EVERY == 0:
            return "export", self._export()
        kind = self._rng.choice([*self._files, "tensors"])
        if kind == "tensors":
            suffix = self._rng.choice([".npz", ".npz", ".safetensors", ".pth"])
            path = self.folder / f"changed{suffix}"
            tensors = mutated_tensors(self._tensors, self._rng)
            try:
                write_tensors(str(path), tensors)
            except Exception:  # of many kinds, for what this format cannot hold
                np.savez(path := path.with_suffix(".npz"), **tensors)
            return kind, path
        path = self.folder / f"changed{kind}"
        change = mutated
        if kind in (".pth", ".npz", ".packed.npz") and self._rng.random() < 0.7:
            change = mutated_zip
        path.write_bytes(change(self._files[kind], self._rng))
        return kind, path

    def _export(self) -> pathlib.Path:
        path = self.folder / "changed_export"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.folder / "export", path)
        file = self._rng.choice([file for file in sorted(path.rglob("*")) if file.is_file()])
        file.write_bytes(mutated(file.read_bytes(), self._rng))
        return path


def run(cases: int, seed: int) -> dict:
    """Reads so many changed files; returns the counts."""
    rng, model = random.Random(seed), tiny_model()
    counts = collections.defaultdict(lambda: {"loaded": 0, "refused": 0})
    failed: list[str] = []
    slowest, first = 0.0, peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(pathlib.Path(folder), rng)
        for number in range(cases):
            kind, path = corpus.next(number)
            start = time.perf_counter()
            try:
                with limited(SECONDS):
                    load(model, path, allow_missing=rng.random() < 0.5)
                counts[kind]["loaded"] += 1
            except UserError:
                counts[kind]["refused"] += 1
            except (Exception, TooLong) as error:
                failed.append(f"case {number}, {kind}: {type(error).__name__}: {error}")
                traceback.print_exc()
            slowest = max(slowest, time.perf_counter() - start)
    result = {"cases": cases, "slowest_s": round(slowest, 2), "grown_mb": peak_mb() - first}
    return result | counts | {"failed": failed}


if __name__ == "__main__":
    command(run, __doc__, cases=10_000, space=SPACE)
