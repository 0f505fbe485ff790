"""The convert command: both ways, what it says, what it refuses."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from evovit_jax import create_model
from evovit_jax.convert import main
from evovit_jax.errors import UserError
from evovit_jax.models import registry
from evovit_jax.models.variables import variables
from evovit_jax.weights import save_weights

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
NAME = "deit_tiny_patch16_224"


def tiny(**others):
    return create_model(NAME, **{**TINY, "num_classes": 5, **others})


@pytest.fixture
def small_model(monkeypatch):
    """Makes the command's model small enough for a test."""
    entry = registry.model_entry(NAME)
    small = dataclasses.replace(entry, settings={**entry.settings, **TINY, "num_classes": 5})
    table = {**registry.model_table(), "deit_tiny_patch16_224": small}
    monkeypatch.setattr(registry, "model_table", lambda: table)
    return "--model=deit_tiny_patch16_224"


def test_the_command_converts_both_ways(tmp_path, capsys, small_model):
    first, export, last = (str(tmp_path / name) for name in ("a.pth", "export", "b.pth"))
    save_weights(tiny(), first)
    assert main([small_model, f"--input={first}", f"--output={export}"]) == 0
    assert main([small_model, f"--input={export}", f"--output={last}"]) == 0
    assert "names of timm" in capsys.readouterr().out
    with open(first, "rb") as one, open(last, "rb") as other:
        assert one.read() == other.read()


def test_the_command_ends_with_json(tmp_path, capsys, small_model):
    save_weights(tiny(), tmp_path / "a.npz")
    paths = {"input": str(tmp_path / "a.npz"), "output": str(tmp_path / "b.npz")}
    flags = [small_model, *(f"--{name}={path}" for name, path in paths.items())]
    assert main([*flags, "--image_size=24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.items() >= {"model": "deit_tiny_patch16_224", **paths}.items()
    held = variables(tiny(image_size=24))
    assert found["variables"] == len(held)
    assert found["values"] == sum(variable.size for variable in held.values())
    assert len(found["notes"]) == 1
    assert "pos_embed interpolated" in found["notes"][0]


def test_the_command_writes_no_nan_unless_asked_to(tmp_path, capsys, small_model):
    model = tiny()
    model.head.bias[...] = np.full(5, np.nan, np.float32)
    save_weights(model, tmp_path / "a.npz")
    flags = [small_model, f"--input={tmp_path / 'a.npz'}", f"--output={tmp_path / 'b.npz'}"]
    with pytest.raises(UserError, match=r"a\.npz: NaN or Inf in head\.bias; allow_nonfinite"):
        main(flags)
    assert os.listdir(tmp_path) == ["a.npz"]
    assert main([*flags, "--allow_nonfinite"]) == 0
    assert "NaN or Inf in: head.bias" in capsys.readouterr().out


@pytest.mark.parametrize("empty", ["input", "output"])
def test_the_command_needs_two_places(tmp_path, small_model, empty):
    places = {"input": str(tmp_path / "a.npz"), "output": str(tmp_path / "b.npz"), empty: ""}
    with pytest.raises(UserError, match="--input and --output must not be empty"):
        main([small_model, *(f"--{name}={path}" for name, path in places.items())])


def test_the_command_says_what_it_adapts(tmp_path, capsys, small_model):
    save_weights(tiny(), tmp_path / "a.npz")
    arguments = [small_model, f"--input={tmp_path / 'a.npz'}", f"--output={tmp_path / 'b.npz'}"]
    assert main([*arguments, "--image_size=24"]) == 0
    assert "pos_embed interpolated from" in capsys.readouterr().out


def test_the_command_writes_nothing_after_an_error(tmp_path, small_model):
    (tmp_path / "a.pth").write_bytes(b"nonsense")
    save_weights(tiny(), tmp_path / "good.npz")
    with pytest.raises(UserError, match="damaged"):
        main([small_model, f"--input={tmp_path / 'a.pth'}", f"--output={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="no family 'nobody'"):
        main(
            [
                small_model,
                f"--input={tmp_path / 'good.npz'}",
                f"--output={tmp_path / 'out.npz'}",
                "--family=nobody",
            ]
        )
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "good.npz"]


def test_the_command_ends_in_one_line_and_status_2(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"nonsense")
    command = [sys.executable, "-m", "evovit_jax.convert", "--model=deit_tiny_patch16_224"]
    command += [f"--input={tmp_path / 'a.pth'}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["a.pth"]
