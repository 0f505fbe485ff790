"""Exports and runs as weights, and the command that converts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

import evovit_jax
from evovit_jax.convert import main
from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import fuse
from evovit_jax.weights import files, from_torch, load_weights, save_weights, to_torch
from evovit_jax.weights.layouts import variables
from evovit_jax.weights.load_save import ABOUT

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
LEVIT = {
    "image_size": 32,
    "embed_dim": (16, 24),
    "key_dim": 4,
    "num_heads": (2, 3),
    "depth": (1, 1),
}


def tiny(name="deit_tiny_patch16_224", seed=0, **others):
    sizes = LEVIT if "levit" in name else TINY
    return evovit_jax.create_model(name, **{"num_classes": 5, **sizes, **others}, seed=seed)


def assert_same_variables(first, second):
    ours, theirs = variables(first), variables(second)
    assert sorted(ours) == sorted(theirs)
    for path, variable in ours.items():
        np.testing.assert_array_equal(variable[...], theirs[path][...], err_msg=path)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "evo_levit_128s"])
def test_an_export_gives_back_every_bit(tmp_path, name):
    model, other = tiny(name), tiny(name, seed=1)
    save_weights(model, tmp_path / "export")
    assert load_weights(other, tmp_path / "export") == []
    assert_same_variables(model, other)
    assert os.listdir(tmp_path) == ["export"]


def test_an_export_is_replaced_and_nothing_else(tmp_path):
    save_weights(tiny(), tmp_path / "export")
    save_weights(tiny(seed=1), tmp_path / "export")
    other = tiny(seed=2)
    load_weights(other, tmp_path / "export")
    assert_same_variables(other, tiny(seed=1))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="exists and is no export"):
        save_weights(tiny(), precious)
    assert os.listdir(precious) == ["thesis.tex"]


def test_an_export_keeps_what_the_weights_were_trained_with(tmp_path):
    model = tiny("evo_deit_tiny_patch16_224")
    from_torch(model, to_torch(model, "evo_deit"))
    save_weights(model, tmp_path / "export")
    other = tiny("evo_deit_tiny_patch16_224")
    notes = load_weights(other, tmp_path / "export")
    assert notes == ["set what these weights were trained with: representative_token=False"]


def test_an_export_adapts_as_files_do(tmp_path):
    save_weights(tiny(), tmp_path / "export")
    notes = load_weights(tiny(image_size=24, num_classes=7), tmp_path / "export")
    assert notes == [
        "the checkpoint has 5 classes, the model 7: its heads keep their initial values",
        "pos_embed interpolated from (1, 17, 12) to (1, 37, 12)",
    ]


def test_an_export_of_a_class_tokens_model_is_not_pooled(tmp_path):
    save_weights(tiny(), tmp_path / "export")
    model = tiny("evo_deit_tiny_patch16_224")
    with pytest.raises(UserError, match=r"export: .*--model=deit_\* --reduction=evo"):
        load_weights(model, tmp_path / "export")
    assert load_weights(model, tmp_path / "export", allow_missing="(norm|head)_cls/.*")


def test_a_run_in_an_object_store_is_weights(tmp_path, monkeypatch):
    """`gs://` played by a folder."""
    save_weights(tiny(), tmp_path / "export")
    monkeypatch.setattr(files.config_file, "locate", lambda path: epath.Path(tmp_path / "export"))
    other = tiny(seed=1)
    assert load_weights(other, "gs://bucket/export") == []
    assert_same_variables(other, tiny())


def test_what_an_object_store_cannot_do_is_named():
    with pytest.raises(UserError, match="files of an object store are not read; copy it"):
        load_weights(tiny(), "gs://bucket/w.pth")
    with pytest.raises(UserError, match="output gs://bucket/x is in an object store"):
        save_weights(tiny(), "gs://bucket/x")
    with pytest.raises(UserError, match="weights nowhere://x cannot be read"):
        load_weights(tiny(), "nowhere://x")


def test_an_export_with_folded_batch_norm(tmp_path):
    folded = fuse(tiny("levit_128s"))
    save_weights(folded, tmp_path / "export")
    other = tiny("levit_128s", seed=1)
    assert "folded" in load_weights(other, tmp_path / "export")[0]
    assert_same_variables(folded, other)


def test_a_damaged_export_ends_in_one_line(tmp_path):
    save_weights(tiny(), tmp_path / "export")
    stored = [f for f in (tmp_path / "export" / "variables").rglob("*") if f.is_file()]
    for file in stored:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged or incomplete") as caught:
        load_weights(tiny(), tmp_path / "export")
    assert "\n" not in str(caught.value)
    (tmp_path / "export" / ABOUT).write_text("{")
    with pytest.raises(UserError, match="damaged or incomplete"):
        load_weights(tiny(), tmp_path / "export")


def test_a_directory_without_weights_is_named(tmp_path):
    with pytest.raises(UserError, match="has no checkpoint"):
        load_weights(tiny(), tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_weights(tiny(), tmp_path / "nothing")


def test_errors_name_the_file(tmp_path):
    save_weights(tiny(), tmp_path / "w.npz")
    with pytest.raises(UserError, match=r"w\.npz: tensor .* has shape"):
        load_weights(tiny(embed_dim=24), tmp_path / "w.npz")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def small_model(monkeypatch):
    """Makes the command's model small enough for a test."""
    from evovit_jax.models import registry

    entry = registry.model_entry("deit_tiny_patch16_224")
    import dataclasses

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


def test_the_export_says_what_it_is(tmp_path):
    save_weights(tiny(), tmp_path / "export")
    about = json.loads((tmp_path / "export" / ABOUT).read_text())
    assert about["model"] == "VisionTransformer"
    assert about["config"]["embed_dim"] == 12
