"""docs/adding_a_model.md as it stands: a model and its weights from outside of the package."""

import importlib.machinery
import json
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import parity_test
import pytest
from tiny import run_model

import evovit_jax
from evovit_jax import models, weights
from evovit_jax.config import variants
from evovit_jax.errors import UserError
from evovit_jax.models import registry
from evovit_jax.models.__main__ import row
from evovit_jax.weights import families, files

DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "adding_a_model.md"
NAME = "convmixer_768_32"
TINY = {"image_size": 14, "embed_dim": 6, "depth": 2, "kernel_size": 3, "num_classes": 5}


@pytest.fixture(scope="module")
def walk():
    """The names that the document's code leaves behind; what it registers is known meanwhile."""
    tables = (registry._registered, families._registered)
    before, names = [dict(table) for table in tables], {"__name__": "walk"}
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))
    exec(compile(code, str(DOCUMENT), "exec"), names)
    yield names
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


@pytest.fixture
def tensors(walk):
    """A state dict with timm's names and shapes for the tiny sizes, and random values."""
    del walk
    dim, rng = TINY["embed_dim"], np.random.default_rng(0)
    convolutions = {"stem.0": (dim, 3, 7, 7), "head": (TINY["num_classes"], dim)}
    norms = ["stem.2"]
    for i in range(TINY["depth"]):
        convolutions |= {f"blocks.{i}.0.fn.0": (dim, 1, 3, 3), f"blocks.{i}.1": (dim, dim, 1, 1)}
        norms += [f"blocks.{i}.0.fn.2", f"blocks.{i}.3"]
    shapes = {f"{name}.weight": shape for name, shape in convolutions.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in convolutions.items()}
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{name}.{part}": (dim,) for name in norms for part in parts}
    drawn = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    positive = {n: np.abs(v) + 0.5 if n.endswith("var") else v for n, v in drawn.items()}
    counts = {f"{name}.num_batches_tracked": np.asarray(7) for name in norms}
    return {name: value.astype(np.float32) for name, value in positive.items()} | counts


def reference(tensors, images):
    """The logits of the paper's network, from PyTorch's tensors and `[b, c, h, w]` images."""

    def layer(x, conv, norm, **settings):
        kernel, bias = tensors[f"{conv}.weight"], tensors[f"{conv}.bias"]
        x = jax.lax.conv_general_dilated(x, kernel, **settings)
        x = np.maximum(np.asarray(x) + bias[:, None, None], 0)
        parts = ("weight", "bias", "running_mean", "running_var")
        scale, shift, mean, var = (tensors[f"{norm}.{part}"][:, None, None] for part in parts)
        return (x - mean) / np.sqrt(var + 1e-5) * scale + shift

    x = layer(images, "stem.0", "stem.2", window_strides=(7, 7), padding="VALID")
    same = {"window_strides": (1, 1), "padding": "SAME"}
    for i in range(TINY["depth"]):
        block = f"blocks.{i}"
        groups = {"feature_group_count": TINY["embed_dim"]}
        x = x + layer(x, f"{block}.0.fn.0", f"{block}.0.fn.2", **same, **groups)
        x = layer(x, f"{block}.1", f"{block}.3", **same)
    return x.mean(axis=(2, 3)) @ tensors["head.weight"].T + tensors["head.bias"]


def test_the_model_of_the_walk_runs(walk):
    assert walk["logits"].shape == (1, 1000)
    assert walk["out"].features.shape == (1, 16, 16)
    assert NAME in evovit_jax.list_models()
    small = "image_size=28,embed_dim=16,depth=2,kernel_size=3"
    assert variants.teacher(f"{NAME},depth=9") == f"{NAME},{small}"
    assert evovit_jax.create_model("deit_micro_patch16_224").config.embed_dim == 128


def test_the_published_size_is_the_published_one(walk):
    """21.1 million parameters in the paper; multiply-adds are those of its layers, 32x32 places."""
    del walk
    _, _, parameters, gmacs, *_ = row(NAME)
    assert float(parameters) == pytest.approx(21.1, abs=0.05)
    layers = 32 * (7 * 7 * 768 + 768 * 768) + 7 * 7 * 3 * 768
    assert float(gmacs) == pytest.approx((32 * 32 * layers + 768 * 1000) / 1e9, abs=1e-3)


def test_files_with_timms_names_are_read_and_written(tensors, tmp_path):
    files.write_tensors(str(tmp_path / "timm.pth"), tensors)
    model = evovit_jax.create_model(NAME, **TINY)
    assert evovit_jax.load_weights(model, tmp_path / "timm.pth") == []
    images = np.random.default_rng(1).normal(size=(2, 3, 14, 14)).astype(np.float32)
    logits, _ = run_model(model, jnp.asarray(images.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(logits, reference(tensors, images), atol=1e-5)
    weights.save_weights(model, tmp_path / "again.safetensors")
    again, _ = files.read_tensors(str(tmp_path / "again.safetensors"))
    assert sorted(again) == sorted(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_a_golden_file_of_it_needs_no_new_line(tensors, tmp_path):
    images = np.random.default_rng(1).normal(size=(2, 3, 14, 14)).astype(np.float32)
    meta = {"family": NAME, "method": None, "model": {"name": NAME, **TINY}}
    meta["outputs"] = {"logits": {}}
    golden = {f"param/{name}": value for name, value in tensors.items()}
    golden |= {"logits": reference(tensors, images), "images_nchw": images}
    np.savez(tmp_path / "right.npz", meta=json.dumps(meta), **golden)
    parity_test.test_output_equals_official_code(tmp_path / "right.npz", "logits")
    golden["logits"] = golden["logits"] + 1e-3
    np.savez(tmp_path / "wrong.npz", meta=json.dumps(meta), **golden)
    with pytest.raises(AssertionError):
        parity_test.test_output_equals_official_code(tmp_path / "wrong.npz", "logits")


def test_kept_it_is_a_model_like_the_others(walk, tensors, monkeypatch):
    """The files and the row of "To keep it"."""
    modules = {}
    for room in ("models", "weights.names"):
        name = f"evovit_jax.{room}.kept"
        modules[room] = types.ModuleType(name)
        modules[room].__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, modules[room])
    kept = type("Kept", (walk["ConvMixer"],), {"__module__": "evovit_jax.models.kept"})
    modules["models"].MODELS = {"kept_model": models.Entry(kept, {})}
    model = kept(walk["ConvMixerConfig"](**TINY), rngs=walk["nnx"].Rngs(0))
    monkeypatch.setattr(registry, "MODULES", (*registry.MODULES, "kept"))
    assert "kept_model" in evovit_jax.list_models("kept*")
    modules["weights.names"].FAMILIES = walk["FAMILIES"]
    assert weights.from_torch(evovit_jax.create_model("kept_model", **TINY), tensors) == []
    assert weights.to_torch(model).keys() == tensors.keys()


def test_to_keep_it_names_every_step():
    """The paths that it names are those of the models that are there."""
    text = DOCUMENT.read_text().partition("## To keep it")[2]
    for step in ("`MODULES`", "`FAMILIES`", "--write=docs/models.md", "`EXPECTED`", "another name"):
        assert step in " ".join(text.split())
    paths = re.findall(r"`((?:evovit_jax|docs|tests)/[^`]+)`", DOCUMENT.read_text())
    assert {"evovit_jax/models/NAME.py", "evovit_jax/weights/names/NAME.py"} <= {*paths}
    for path in paths:
        assert (DOCUMENT.parents[1] / path.replace("NAME", "levit")).is_file(), path


def test_a_model_without_published_weights_is_saved_and_loaded_by_its_own_names(walk, tmp_path):
    kind = type("Unpublished", (walk["ConvMixer"],), {"__module__": "elsewhere"})
    first, other = (kind(walk["ConvMixerConfig"](**TINY), rngs=walk["nnx"].Rngs(i)) for i in (0, 1))
    weights.save_weights(first, tmp_path / "export")
    assert evovit_jax.load_weights(other, tmp_path / "export") == []
    np.testing.assert_array_equal(other.head.kernel[...], first.head.kernel[...])
    with pytest.raises(UserError, match="there is no PyTorch layout for a Unpublished"):
        weights.to_torch(first)


def test_taken_names_are_one_clear_line(walk):
    entry = walk["MODELS"][NAME]
    models.register(NAME, entry)  # the same again is no mistake
    with pytest.raises(UserError, match="model 'deit_tiny_patch16_224' exists already"):
        models.register("deit_tiny_patch16_224", entry)
    with pytest.raises(UserError, match="the families of ConvMixer are known already"):
        weights.register(walk["ConvMixer"], weights.Family("other", walk["renamed_scheme"]))
    with pytest.raises(UserError, match="no tokens to reduce"):
        evovit_jax.create_model(NAME, "evit", **TINY)
