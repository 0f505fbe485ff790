"""The figures of an evaluation: padding, batches, overrides, class names."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import run_model

from evovit_jax.data.decode import open_image
from evovit_jax.errors import UserError
from evovit_jax.inference import evaluation
from evovit_jax.inference.ready_model import prepare

SMALL = {"image_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 2, "num_heads": 3}
CLASSES = 6
COUNT = 13  # leaves a batch that is not full on eight devices


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random images with a labels.csv."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["file,label"]
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{i % CLASSES}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def prepared():
    return prepare("deit_tiny_patch16_224", num_classes=CLASSES, seed=3, **SMALL)


def test_the_figures_are_those_of_every_image_once(folder, prepared):
    found = evaluation.evaluate(prepared, f"folder:{folder}", quiet=True)
    ranks = []
    for i in range(COUNT):
        pixels = prepared.crop(open_image((folder / f"{i:02d}.png").read_bytes()))
        t = prepared.transform
        images = (pixels[None].astype(np.float32) / 255 - np.float32(t.mean)) / np.float32(t.std)
        logits = np.asarray(run_model(prepared.model, images)[0][0])
        ranks.append(int((logits > logits[i % CLASSES]).sum()))
    assert found["examples"] == COUNT
    assert found["top1"] == pytest.approx(100 * np.mean(np.array(ranks) < 1), abs=1e-3)
    assert found["top5"] == pytest.approx(100 * np.mean(np.array(ranks) < 5), abs=1e-3)
    assert sorted(found) == sorted(
        ["model", "reduction", "top1", "top5", "examples", "images_per_second", "gmacs"]
    )
    assert found["images_per_second"] > 0


@pytest.mark.parametrize("batch_size", [8, 16])
def test_the_batch_changes_no_figure(folder, prepared, batch_size):
    expected = evaluation.evaluate(prepared, f"folder:{folder}", quiet=True)
    found = evaluation.evaluate(prepared, f"folder:{folder}", batch_size=batch_size, quiet=True)
    for name in ("top1", "top5", "examples", "gmacs"):
        assert found[name] == expected[name]


def test_a_reduction_lowers_the_gmacs(folder, prepared):
    reduced = prepare(
        "deit_tiny_patch16_224",
        reduction="evit,keep_rate=0.5,locations=0:",
        num_classes=CLASSES,
        **SMALL,
    )
    found = evaluation.evaluate(reduced, f"folder:{folder}", quiet=True)
    dense = evaluation.evaluate(prepared, f"folder:{folder}", quiet=True)
    assert found["reduction"] == "evit,keep_rate=0.5,locations=0:"
    assert found["gmacs"] < dense["gmacs"]


def test_class_folders_are_numbered_by_the_models_names(tmp_path, prepared, folder):
    for name in ("class 4", "class 2"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "00.png", tmp_path / name)
    config = evaluation.data_config(prepared, f"folder:{tmp_path}")
    labels = next(iter(evaluation.open_batches(prepared, config)))
    assert labels["label"][labels["mask"]].tolist() == [2, 4]
    (tmp_path / "cat").mkdir()
    shutil.copy(folder / "00.png", tmp_path / "cat")
    with pytest.raises(UserError, match=r"3 class folders, the model 6 classes, .* named cat"):
        evaluation.evaluate(prepared, f"folder:{tmp_path}", quiet=True)


def test_the_transform_follows_the_model_and_the_flags():
    def resize_of(**flags):
        return evaluation.data_config(
            prepare("deit_tiny_patch16_224", num_classes=CLASSES, **SMALL, **flags), "folder:x"
        ).eval_transform.resize

    assert resize_of() == 36  # 32 * 256 / 224
    assert resize_of(resize=40) == 40
    assert resize_of(crop_fraction=0.5) == 64


def test_tfds_is_evaluated_on_its_own_split():
    small = prepare("deit_tiny_patch16_224", num_classes=10, **SMALL)
    for data, expected in (
        ("tfds:digits", ""),
        ("tfds:digits:train[:8]", "tfds:digits:train[:8]"),
        ("folder:x", "folder:x"),
    ):
        assert evaluation.data_config(small, data).eval_data == expected


def test_bad_batches_and_data_are_named(folder, prepared):
    assert jax.device_count() == 8
    with pytest.raises(UserError, match="batch_size=12 does not divide over 8 devices"):
        evaluation.evaluate(prepared, f"folder:{folder}", batch_size=12)
    with pytest.raises(UserError, match="batch_size=0 must be at least 1"):
        evaluation.evaluate(prepared, f"folder:{folder}", batch_size=0)
    few = prepare("deit_tiny_patch16_224", num_classes=3, **SMALL)
    with pytest.raises(UserError, match="6 classes"):
        evaluation.evaluate(few, f"folder:{folder}", quiet=True)
    with pytest.raises(UserError, match="does not exist"):
        evaluation.evaluate(prepared, f"folder:{folder / 'none'}", quiet=True)
