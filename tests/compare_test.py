"""`compare`: the same figures as `evaluate`, its files, its errors, what it does not do again."""

import collections
import csv
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import filled

from evovit_jax import compare, flops
from evovit_jax.benchmarking import comparison, comparison_report, timing
from evovit_jax.errors import UserError
from evovit_jax.inference import evaluation
from evovit_jax.inference.ready_model import ReadyModel, prepare
from evovit_jax.models import EvalTransform, create_model
from evovit_jax.reduction import parse
from evovit_jax.weights import to_torch

TINY = {"image_size": 32, "num_classes": 4}
SMALL = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3}
SIZE = 8  # images at once: the 12 of the folder are two batches


@pytest.fixture(scope="module")
def scene(tmp_path_factory, shallow):
    """A folder of four classes of noise, and weights for them."""
    folder = tmp_path_factory.mktemp("compare")
    drawn = np.random.default_rng(0)
    for label in range(4):
        (folder / "images" / f"class{label}").mkdir(parents=True)
        for i in range(3):
            pixels = drawn.integers(0, 255, (36, 36, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"class{label}" / f"{i}.png")
    model = create_model(shallow, "none", **TINY, seed=1)
    np.savez(folder / "weights.npz", **to_torch(model))
    return folder


def flags(scene, reductions, *others):
    return [
        "--model=deit_shallow_patch16_224",
        f"--weights={scene / 'weights.npz'}",
        f"--data=folder:{scene / 'images'}",
        "--image_size=32",
        "--num_classes=4",
        f"--reductions={reductions}",
        f"--output={scene / 'out'}",
        *others,
    ]


def test_rows_files_and_json(scene, capsys):
    specs = ["none", "evit,keep_rate=0.5,locations=1"]
    assert compare.main(flags(scene, ";".join(specs), "--rounds=2", "--json")) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["reduction"] for row in found["rows"]] == specs
    alone = evaluation.evaluate(
        prepare("deit_shallow_patch16_224", str(scene / "weights.npz"), specs[-1], **TINY),
        f"folder:{scene / 'images'}",
        quiet=True,
    )
    assert {k: found["rows"][-1][k] for k in ("top1", "top5", "examples", "gmacs")} == {
        k: alone[k] for k in ("top1", "top5", "examples", "gmacs")
    }
    for row in found["rows"]:
        assert row["images_per_second"] > 0
        assert row["top1_low"] <= row["top1"] <= row["top1_high"]
    assert found["rows"][0]["speedup"] == 1
    assert found["rows"][0]["agreement"] == 100
    assert found["rows"][1]["gmacs"] < found["rows"][0]["gmacs"]
    with (scene / "out" / "compare.csv").open() as file:
        assert [row["reduction"] for row in csv.DictReader(file)] == specs
    table = (scene / "out" / "compare.md").read_text()
    assert "| `evit,keep_rate=0.5,locations=1` |" in table
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
    monkeypatch.setattr(compare.model_flags, "prepare_one", None)
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


class Stand:
    """In the place of networks: programs that answer at once, and a count of what is done.

    The dense network is right about every image, the others are wrong about the first of a batch.
    What a network costs is its keep rate.
    """

    def __init__(self):
        self.done, self.fail_at = collections.Counter(), None
        tiny = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
        model = filled("deit_tiny_patch16_224", "none", **tiny, num_classes=4)
        self.ready = ReadyModel("tiny", "none", model, EvalTransform(image_size=16, resize=16))

    def prepare_one(self, flags, spec):
        del flags
        return dataclasses.replace(self.ready, reduction=spec)

    def gmacs(self, model):
        self.done["gmacs"] += 1
        return getattr(model.reducer.fields, "keep_rate", 1.0)

    def compiled(self, prepared, config, mesh):
        del config, mesh
        self.done["compiled"] += 1
        method = parse(prepared.reduction)[0]

        def step(batch):
            self.done[method] += 1
            if self.done[method] == self.fail_at:
                raise KeyboardInterrupt
            labels = np.asarray(batch["label"])
            rank = np.where(labels < 0, -1, 0).astype(np.int32)
            answer = np.maximum(labels, 0)
            if method != "none":
                rank[0], answer[0] = 1 if labels[0] >= 0 else -1, answer[0] + 1
            found = {"rank": rank, "answer": answer, "mask": batch["mask"]}
            return {name: jnp.asarray(value) for name, value in found.items()}

        return step

    def interleave(self, measures, *, rounds):
        self.done["timed"] += len(measures)
        return {name: timing.Timing((1.0,) * rounds) for name in measures}


@pytest.fixture(scope="module")
def tiny_stand():
    return Stand()


@pytest.fixture
def stand(tiny_stand, monkeypatch):
    tiny_stand.done.clear()
    tiny_stand.fail_at = None
    monkeypatch.setattr(compare.model_flags, "prepare_one", tiny_stand.prepare_one)
    monkeypatch.setattr(flops, "gmacs", tiny_stand.gmacs)
    monkeypatch.setattr(evaluation, "compiled_outcomes", tiny_stand.compiled)
    monkeypatch.setattr(timing, "interleave", tiny_stand.interleave)
    return tiny_stand


def study(scene, output, capsys, *others, data="images"):
    """The rows of a study, and what it printed before."""
    given = [f"--data=folder:{scene / data}", f"--output={output}", f"--batch_size={SIZE}"]
    assert compare.main([*given, "--rounds=1", "--json", *others]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    return json.loads(last)["rows"], lines


AT = ("--reductions=topk;shift,locations=0", "--at_gmacs=0.5,0.8")


def test_a_study_at_equal_cost(scene, stand, tmp_path, capsys):
    rows, lines = study(scene, tmp_path, capsys, *AT)
    found = ("topk,keep_rate=0.5", "shift,locations=0,keep_rate=0.5")
    found += ("topk,keep_rate=0.8", "shift,locations=0,keep_rate=0.8")
    assert [row["reduction"] for row in rows] == ["none", *found]
    assert [row["target_gmacs"] for row in rows] == [None, 0.5, 0.5, 0.8, 0.8]
    assert [row["gmacs"] for row in rows] == [1.0, 0.5, 0.5, 0.8, 0.8]
    assert "0.5 GMACs: topk,keep_rate=0.5 has 0.5" in lines
    # 12 images in batches of 8: two of them are wrong.
    assert [row["top1"] for row in rows] == [100, *[pytest.approx(100 * 10 / 12, abs=1e-3)] * 4]
    for row in rows[1:]:
        assert row["agreement"] == row["top1"]
        assert row["change"] == pytest.approx(-100 * 2 / 12, abs=1e-3)
        assert row["change_low"] == pytest.approx(row["top1_low"] - 100, abs=1e-3)
        assert row["top1_low"] < row["top1"] < row["top1_high"]
    assert [row["pareto"] for row in rows] == [True, True, True, False, False]
    table = (tmp_path / "compare.md").read_text().splitlines()
    assert table[4].endswith("| 1.0 | * |")
    assert "| 83.3 | 58.3 to 100.0 |" in table[5]
    with Image.open(tmp_path / "at_gmacs.png") as picture:
        assert picture.width > 2 * picture.height > 400  # two panels


def test_what_is_known_is_not_found_out_again(scene, stand, tmp_path, capsys, monkeypatch):
    rows, _ = study(scene, tmp_path, capsys, *AT)
    assert stand.done["compiled"] == stand.done["timed"] == 5
    stand.done.clear()
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "open_batches", None)
        assert study(scene, tmp_path, capsys, *AT)[0] == rows
    assert not stand.done
    # One method more: it alone sees images, and is timed in turns with the first.
    more = (f"{AT[0]};heuristic", "--at_gmacs=0.5")
    assert len(study(scene, tmp_path, capsys, *more)[0]) == 4
    assert {name: stand.done[name] for name in ("compiled", "timed", "heuristic")} == {
        "compiled": 2, "timed": 2, "heuristic": 2,
    }  # fmt: skip
    assert not stand.done["none"] + stand.done["topk"] + stand.done["shift"]


def test_a_damaged_record_is_said_and_found_out_again(scene, stand, tmp_path, capsys):
    rows, _ = study(scene, tmp_path, capsys, *AT)
    stand.done.clear()
    records = sorted((tmp_path / "records").iterdir())
    (ours,) = (path for path in records if '"topk,keep_rate=0.5"' in path.read_text()
               and '"ranks"' in path.read_text())  # fmt: skip
    ours.write_text(ours.read_text()[:-40])
    again, lines = study(scene, tmp_path, capsys, *AT)
    assert again == rows
    assert [line for line in lines if "damaged" in line] == [
        next(line for line in lines if line.startswith(f"{ours} is damaged ("))
    ]
    assert stand.done["topk"] == 2  # of the two settings one, in two batches
    assert stand.done["none"] == stand.done["shift"] == 0


def test_what_was_interrupted_goes_on_where_it_was(scene, stand, tmp_path, capsys, monkeypatch):
    whole, _ = study(scene, tmp_path / "whole", capsys, "--reductions=none;topk")
    monkeypatch.setattr(comparison, "SAVE_SECONDS", -1)
    monkeypatch.setattr(comparison.scoring, "AHEAD", 0)
    stand.done.clear()
    stand.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        study(scene, tmp_path / "parts", capsys, "--reductions=none;topk")
    stand.done.clear()
    stand.fail_at = None
    rows, _ = study(scene, tmp_path / "parts", capsys, "--reductions=none;topk")
    assert rows == whole
    assert (stand.done["none"], stand.done["topk"]) == (1, 1)  # the second batch


def test_images_without_labels_are_compared_by_agreement(scene, stand, tmp_path, capsys):
    (scene / "flat").mkdir()
    for i, path in enumerate(sorted((scene / "images").rglob("*.png"))):
        (scene / "flat" / f"{i}.png").write_bytes(path.read_bytes())
    rows, _ = study(scene, tmp_path, capsys, "--reductions=none;topk", data="flat")
    assert [row["top1"] for row in rows] == [None, None]
    assert [row["agreement"] for row in rows] == [100, pytest.approx(100 * 10 / 12, abs=1e-3)]
    assert "top-1" not in (tmp_path / "compare.md").read_text()
    with (tmp_path / "compare.csv").open() as file:
        assert [row["top1"] for row in csv.DictReader(file)] == ["", ""]


def test_a_study_says_which_methods_do_not_reach_a_cost(scene, stand, tmp_path, capsys):
    _, lines = study(scene, tmp_path, capsys, "--reductions=topk", "--at_gmacs=0.5,1.2")
    assert lines[1].startswith(
        "1.2 GMACs: topk cannot reach it here, its nearest is topk,keep_rate"
    )
    with pytest.raises(UserError, match="no method reaches what --at_gmacs asks for"):
        study(scene, tmp_path, capsys, "--reductions=topk", "--at_gmacs=1.2")
    with pytest.raises(UserError, match="sit has nothing that could be varied"):
        study(scene, tmp_path, capsys, "--reductions=sit", "--at_gmacs=0.5")


@pytest.mark.slow
def test_a_study_of_all_methods(scene, tmp_path, capsys, monkeypatch):
    """Without stand-ins: every method that needs no training, on a network of three blocks."""
    model = create_model("deit_tiny_patch16_224", "none", **SMALL, num_classes=4, seed=1)
    ready = ReadyModel("tiny", "none", model, EvalTransform(image_size=32, resize=32))

    def prepare_one(flags, spec):
        del flags
        other = create_model("deit_tiny_patch16_224", spec, **SMALL, num_classes=4, seed=1)
        return dataclasses.replace(ready, reduction=spec, model=other)

    monkeypatch.setattr(compare.model_flags, "prepare_one", prepare_one)
    dense = flops.gmacs(model)
    rows, lines = study(scene, tmp_path, capsys, f"--at_gmacs={0.8 * dense}")
    assert len(rows) > 12
    for row in rows[1:]:
        assert row["gmacs"] == pytest.approx(0.8 * dense, rel=0.06)
    assert any(line.startswith("diffrate: ") for line in lines)
