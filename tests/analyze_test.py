"""The command that says what reductions keep: its flags, and a whole run."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny import filled

from evovit_jax import analyze
from evovit_jax.errors import UserError
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models import EvalTransform, create_model
from evovit_jax.weights import to_torch

MODEL = ["--model=deit_shallow_patch16_224", "--image_size=64", "--num_classes=4"]
SMALL = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}


@pytest.fixture(scope="module")
def scene(tmp_path_factory, shallow):
    """A folder of noise without labels."""
    folder = tmp_path_factory.mktemp("analyze")
    (folder / "images").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (80, 96, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def ready():
    """A network for which no program was compiled."""
    model = filled("deit_tiny_patch16_224", "topk", **SMALL)
    return ReadyModel("tiny", "topk", model, EvalTransform(image_size=16, resize=16))


@pytest.fixture
def loaded(ready, monkeypatch):
    """`ready` is what the command loads."""
    monkeypatch.setattr(analyze.model_flags, "prepare_one", lambda flags, spec: ready)


def run(scene, *others, weights="run", reductions="topk"):
    return analyze.main(
        [
            *MODEL,
            f"--weights={weights.format(scene=scene)}",
            f"--data=folder:{scene / 'images'}",
            f"--reductions={reductions}",
            f"--output={scene / 'out'}",
            *others,
        ]
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("--count=0", "--count=0 must be at least 1"),
        ("--batch_size=0", "batch_size=0 must be at least 1"),
        ("--output={scene}/images/0.png", "cannot write to --output=.*: File exists"),
        ("--reductions=", "must name each reduction once"),
        ("--reductions=topk;topk", "must name each reduction once"),
        ("--reduction=topk", "name them all in --reductions"),
    ],
)
def test_bad_flags_end_before_weights_are_read(scene, monkeypatch, other, message):
    monkeypatch.setattr(analyze.model_flags, "prepare_one", None)
    with pytest.raises(UserError, match=message):
        run(scene, other.format(scene=scene))


@pytest.mark.parametrize(
    ("weights", "message"),
    [("run;run", "must name each file once"), (";", "reduction topk: --weights is empty")],
)
def test_bad_weights_are_named(scene, weights, message):
    with pytest.raises(UserError, match=message):
        run(scene, weights=weights)


def test_weights_of_different_networks_are_refused(scene, ready, monkeypatch):
    other = filled("deit_tiny_patch16_224", "topk", **SMALL | {"depth": 2})
    models = iter((ready, dataclasses.replace(ready, model=other, weights="b")))
    monkeypatch.setattr(analyze.model_flags, "prepare_one", lambda flags, spec: next(models))
    with pytest.raises(UserError, match="b and None are of different networks; name trainings"):
        run(scene, weights="a;b")


@pytest.mark.slow
def test_a_reduction_that_the_network_cannot_take_is_named(scene):
    with pytest.raises(UserError, match=r"reduction topk,locations=7: .*block numbers in 0\.\.3"):
        run(scene, reductions="topk,locations=7")


@pytest.mark.slow
def test_a_model_without_tokens_is_named(scene, ready, monkeypatch):
    small = {"widths": (112,), "depth": (1,), "stem_width": 8, "num_classes": 5}
    model = filled("regnety_160", image_size=32, **small)
    model = dataclasses.replace(ready, name="regnety_160", model=model)
    monkeypatch.setattr(analyze.model_flags, "prepare_one", lambda flags, spec: model)
    with pytest.raises(UserError, match="regnety_160 has no tokens to show"):
        run(scene)


@pytest.mark.usefixtures("loaded")
def test_data_without_images_is_named(scene, tmp_path):
    with pytest.raises(UserError, match="holds neither class folders nor"):
        run(scene, f"--data=folder:{tmp_path}")


@pytest.mark.usefixtures("loaded")
def test_boxes_of_other_images_are_named(scene, tmp_path):
    (tmp_path / "boxes.csv").write_text("file,x0,y0,x1,y1\nother.png,1,2,3,4\n")
    with pytest.raises(UserError, match=r"boxes.csv line 2: no image 'other.png' in folder:"):
        run(scene, f"--boxes={tmp_path}/boxes.csv")


@pytest.mark.slow
def test_a_whole_run(scene, capsys):
    """Two batches, the second with padding, and two sets of weights."""
    for seed in (1, 2):
        model = create_model("deit_shallow_patch16_224", image_size=64, num_classes=4, seed=seed)
        np.savez(scene / f"{seed}.npz", **to_torch(model))
    lines = [f"{i}.png,20,0,60,80" for i in range(4)] + ["4.png,0,0,7,80"]
    (scene / "boxes.csv").write_text("\n".join(["file,x0,y0,x1,y1", *lines]) + "\n")
    specs = ["none", "topk,keep_rate=0.5", "tome,r=4", "evo", "heuristic"]
    assert run(
        scene,
        f"--boxes={scene}/boxes.csv",
        "--json", "--batch_size=8",
        weights="{scene}/1.npz;{scene}/2.npz",
        reductions=";".join(specs),
    ) == 0  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    assert any("1 box is outside of what the model sees" in line for line in said)
    found = json.loads(said[-1])
    rows = {row["reduction"]: row for row in found["rows"]}
    assert list(rows) == specs
    assert found["examples"] == 12
    none, topk, disc = rows["none"], rows["topk,keep_rate=0.5"], rows["heuristic"]
    assert (none["tokens"], none["flip"], none["attention"]) == (16, 1, 1)
    assert none["object"] == pytest.approx(none["covered"], abs=1e-4)
    assert none["objects"] == 4
    assert none["blocks"] is None
    assert none["iou"][1] == none["iou_chance"][1] == pytest.approx(topk["tokens"] / 16)
    assert disc["flip"] == disc["seeds"] == 1
    for row in rows.values():
        assert 0 < row["tokens"] <= 16
        assert 0 <= row["flip"] <= 1
        assert len(row["by_block"]["tokens"]) == 4
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    assert sorted(path.name for path in (scene / "out").iterdir()) == [
        "analyze.csv", "analyze.json", "analyze.md", "analyze.png",
    ]  # fmt: skip
