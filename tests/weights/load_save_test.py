"""Exports and runs as weights."""

import json
import os
import types

import numpy as np
import pytest
from etils import epath

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import fuse
from evovit_jax.models.variables import variables
from evovit_jax.weights import files, from_torch, load_save, load_weights, save_weights, to_torch
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


def test_the_export_says_what_it_is(tmp_path):
    save_weights(tiny(), tmp_path / "export")
    about = json.loads((tmp_path / "export" / ABOUT).read_text())
    assert about["model"] == "VisionTransformer"
    assert about["config"]["embed_dim"] == 12


@pytest.mark.parametrize(
    "about", ["[]", "null", "5", '{"settings": 5}', '{"settings": []}', "[" * 100_000, "\udcff"]
)
def test_an_export_that_does_not_say_what_it_is(tmp_path, about):
    save_weights(tiny(), tmp_path / "export")
    (tmp_path / "export" / ABOUT).write_bytes(about.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="are damaged") as caught:
        load_weights(tiny(), tmp_path / "export")
    assert "\n" not in str(caught.value)


def test_settings_that_no_reducer_has_change_nothing(tmp_path):
    save_weights(tiny("evo_deit_tiny_patch16_224"), tmp_path / "export")
    about = json.loads((tmp_path / "export" / ABOUT).read_text())
    about["settings"]["representative_token"] = "maybe"
    (tmp_path / "export" / ABOUT).write_text(json.dumps(about))
    model, before = (
        tiny("evo_deit_tiny_patch16_224", seed=1),
        tiny("evo_deit_tiny_patch16_224", seed=1),
    )
    with pytest.raises(UserError, match="trained with: representative_token must be true or false"):
        load_weights(model, tmp_path / "export")
    assert_same_variables(model, before)


def test_an_export_that_says_it_is_huge_is_refused_unread(tmp_path):
    (tmp_path / "file").write_bytes(b"small")
    huge = types.SimpleNamespace(shape=(1 << 20, 1 << 20), dtype="float32")
    with pytest.raises(UserError, match=r"4194304 MB, a file of 0 MB: refused"):
        load_save._check_sizes({"params": {"w": huge}}, epath.Path(tmp_path))


@pytest.mark.parametrize("output", ["~nosuchuser/x", "x" * 5000, "", "a\0b"])
@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_places_that_nobody_has(output, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="output"):
        save_weights(tiny(), output and output + suffix)
    assert os.listdir(tmp_path) == []
