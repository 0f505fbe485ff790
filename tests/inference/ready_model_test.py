"""What the commands share: a run's config, weights that are missing, flags that cannot be used."""

import argparse
import json

import pytest
from etils import epath

from evovit_jax.errors import UserError
from evovit_jax.inference import model_flags
from evovit_jax.inference.ready_model import prepare
from evovit_jax.models import create_model
from evovit_jax.weights import files, save_weights
from evovit_jax.workdir.config_file import read_run

NAME = "deit_tiny_patch16_224"
SMALL = {"image_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 3, "num_classes": 5}
RUN = {
    "model": {"name": NAME, "dtype": None, **SMALL},
    "reduction": "evit,keep_rate=0.5,locations=0:",
    "eval_transform": {"resize": None, "crop_fraction": 0.8, "interpolation": "bilinear"},
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}


@pytest.fixture
def run(tmp_path):
    """A work directory's config, and weights beside it that `load_weights` is given instead."""
    folder = tmp_path / "run"
    save_weights(create_model(NAME, RUN["reduction"], **SMALL), folder)
    (folder / "config.json").write_text(json.dumps(RUN))
    return folder


def test_a_run_knows_its_model_and_transform(run):
    found = prepare(weights=str(run))
    assert (found.name, found.reduction) == (NAME, RUN["reduction"])
    assert (found.transform.image_size, found.transform.resize) == (32, 40)
    assert found.transform.interpolation == "bilinear"
    assert found.notes == ()
    with pytest.raises(UserError, match="is a run of deit_tiny_patch16_224, not of other"):
        prepare("other", str(run))


def test_a_run_in_an_object_store_is_read(run, monkeypatch):
    """`gs://` played by a folder: what reads it must not take the name for a local one."""

    def locate(path):
        assert str(path) == "gs://bucket/run"
        return epath.Path(run)

    monkeypatch.setattr(files.config_file, "locate", locate)
    assert read_run(epath.Path(run)) == RUN
    assert prepare(weights="gs://bucket/run").name == NAME


def test_an_object_store_without_its_client_is_named(monkeypatch):
    def locate(_):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(files.config_file, "locate", locate)
    with pytest.raises(UserError, match=r"weights gs://b/run cannot be read \(Please install gc"):
        prepare(weights="gs://b/run")


@pytest.mark.parametrize(
    "config",
    [{"architecture": "vit"}, {**RUN, "model": "vit"}, {**RUN, "model": {"type": "vit"}}, []],
)
def test_the_config_of_somebody_else_is_no_run(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_run(epath.Path(tmp_path)) is None
    with pytest.raises(UserError, match="say which model"):
        prepare(weights=str(tmp_path))


def test_a_folder_of_the_hub_names_its_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"are no run; give the file .*/model\.safetensors"):
        prepare(NAME, str(tmp_path), **SMALL)


@pytest.mark.parametrize("text", [b'{"model": {', b"\xff\xfe\x00"])
def test_a_config_that_was_cut_short_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.json is damaged or cannot be read") as caught:
        prepare(weights=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_random_weights_are_said(capsys):
    parser = argparse.ArgumentParser()
    model_flags.add_flags(parser)
    flags = parser.parse_args([f"--model={NAME}", "--image_size=32", "--num_classes=5"])
    model_flags.prepare_from(flags)
    assert capsys.readouterr().out == "random weights: give --weights=PATH\n"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": ""}, "--weights is empty"),
        ({"crop_fraction": -1.0}, r"--crop_fraction=-1.0 must be at least 0.0001 and at most 1"),
        ({"crop_fraction": 0.0}, r"--crop_fraction=0.0 must be"),
        ({"crop_fraction": 1.5}, r"--crop_fraction=1.5 must be"),
        ({"crop_fraction": float("nan")}, r"--crop_fraction=nan must be"),
        ({"crop_fraction": 0.5, "resize": 64}, "give one of the two"),
        ({"resize": 31}, "--resize=31 must be at least the image size, 32 pixels"),
        ({"resize": 0}, "--resize=0 must be"),
    ],
)
def test_bad_flags_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        prepare(NAME, **fields, **SMALL)


def test_the_whole_image_may_be_seen():
    assert prepare(NAME, crop_fraction=1.0, **SMALL).transform.resize == 32
    assert prepare(NAME, resize=32, **SMALL).transform.resize == 32


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", "x"), ("mean", [1]), ("mean", [None, 1, 1]), ("std", 5), ("reduction", 7),
        ("eval_transform", []), ("eval_transform", {"resize": "x"}),
        ("eval_transform", {"resize": 0, "crop_fraction": 0, "interpolation": "bilinear"}),
        ("eval_transform", {"resize": 0, "crop_fraction": 1e-320, "interpolation": "bilinear"}),
        ("eval_transform", {"resize": 40, "crop_fraction": 1, "interpolation": "best"}),
        ("model", {"name": 5, "image_size": 32}), ("model", {"name": [], "image_size": 32}),
        ("model", {"name": NAME, "image_size": "x"}), ("model", {"name": NAME, "image_size": [32]}),
        ("model", {"name": NAME, "image_size": 32, "mlp_ratio": "x"}),
        ("model", {"name": NAME, "image_size": 32, "depth": 100_000}),
        ("model", {"name": NAME, "image_size": 32, "qkv_bias": "yes"}),
    ],
)  # fmt: skip
def test_a_run_whose_config_is_damaged_is_refused_in_one_line(run, field, value):
    (run / "config.json").write_text(json.dumps(RUN | {field: value}))
    with pytest.raises(UserError):
        prepare(weights=str(run))
