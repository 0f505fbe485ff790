"""`compare`: the same figures as `evaluate`, its files, and its errors."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from evovit_jax import compare
from evovit_jax.benchmarking import comparison_report
from evovit_jax.errors import UserError
from evovit_jax.inference import evaluation
from evovit_jax.inference.ready_model import prepare
from evovit_jax.models import create_model
from evovit_jax.weights import to_torch

TINY = {"image_size": 32, "num_classes": 4}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A folder of four classes of noise, and weights for them."""
    folder = tmp_path_factory.mktemp("compare")
    drawn = np.random.default_rng(0)
    for label in range(4):
        (folder / "images" / f"class{label}").mkdir(parents=True)
        for i in range(3):
            pixels = drawn.integers(0, 255, (36, 36, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"class{label}" / f"{i}.png")
    model = create_model("deit_tiny_patch16_224", "none", **TINY, seed=1)
    np.savez(folder / "weights.npz", **to_torch(model))
    return folder


def flags(scene, reductions, *others):
    return [
        "--model=deit_tiny_patch16_224",
        f"--weights={scene / 'weights.npz'}",
        f"--data=folder:{scene / 'images'}",
        "--image_size=32",
        "--num_classes=4",
        f"--reductions={reductions}",
        f"--output={scene / 'out'}",
        *others,
    ]


def test_rows_files_and_json(scene, capsys):
    specs = ["none", "evit,keep_rate=0.5,locations=3:6"]
    assert compare.main(flags(scene, ";".join(specs), "--rounds=2", "--json")) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["reduction"] for row in found["rows"]] == specs
    for row in found["rows"]:
        alone = evaluation.evaluate(
            prepare("deit_tiny_patch16_224", str(scene / "weights.npz"), row["reduction"], **TINY),
            f"folder:{scene / 'images'}",
            quiet=True,
        )
        assert {k: row[k] for k in ("top1", "top5", "examples", "gmacs")} == {
            k: alone[k] for k in ("top1", "top5", "examples", "gmacs")
        }
        assert row["images_per_second"] > 0
    assert found["rows"][0]["speedup"] == 1
    assert found["rows"][1]["gmacs"] < found["rows"][0]["gmacs"]
    with (scene / "out" / "compare.csv").open() as file:
        assert [row["reduction"] for row in csv.DictReader(file)] == specs
    table = (scene / "out" / "compare.md").read_text()
    assert "| `evit,keep_rate=0.5,locations=3:6` |" in table
    with Image.open(scene / "out" / "compare.png") as picture:
        assert picture.width > picture.height > 400


@pytest.mark.parametrize(
    ("reductions", "message"),
    [
        ("", "must name each reduction once"),
        ("none;none", "must name each reduction once"),
        ("none;evitt", "reduction evitt: unknown reduction 'evitt'; did you mean 'evit'"),
        ("sit", "reduction sit: .*lacks"),
    ],
)
def test_bad_reductions_are_named(scene, reductions, message):
    with pytest.raises(UserError, match=message):
        compare.main(flags(scene, reductions))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("--rounds=0", "--rounds=0 must be at least 1"),
        ("--batch_size=0", "batch_size=0 must be at least 1"),
        ("--output={scene}/weights.npz", "cannot write to --output=.*: File exists"),
    ],
)
def test_bad_flags_end_before_weights_are_read(scene, monkeypatch, other, message):
    monkeypatch.setattr(compare.model_flags, "prepare_each", None)
    with pytest.raises(UserError, match=message):
        compare.main(flags(scene, "none", other.format(scene=scene)))


def test_one_reduction_has_no_place_here(scene):
    with pytest.raises(UserError, match="name them all in --reductions"):
        compare.main(flags(scene, "none", "--reduction=evit"))


def test_the_name_of_the_data_is_no_markdown_no_formula_and_no_escape(tmp_path):
    row = {"reduction": "none", "top1": float("nan"), "top5": 1.0, "examples": 1, "gmacs": 1.0}
    row |= {"images_per_second": 1.0, "speedup": 1.0, "spread": 0.0}
    title = "deit, 3 images of $\\frac$<img src=x>|**x**\n\x1b[31m\udcff"
    comparison_report.write([row], title, tmp_path)
    first = (tmp_path / "compare.md").read_text().splitlines()[0]
    assert first.isprintable()
    assert "<" not in first
    assert r"\|\*\*x\*\*" in first
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compare.csv", "compare.md", "compare.png",
    ]  # fmt: skip
