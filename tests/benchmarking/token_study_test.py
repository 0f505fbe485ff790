"""A study of kept tokens: networks whose choice is known, what is written, and the real ones."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny import filled

from evovit_jax.benchmarking import token_report, token_study
from evovit_jax.benchmarking.group_means import GroupMeans
from evovit_jax.benchmarking.progress import Progress
from evovit_jax.data.source import open_source
from evovit_jax.inference import evaluation, objects
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models import EvalTransform

GRID, SIDE, STEP = (4, 4), 16, 4
TINY = {"image_size": SIDE, "patch_size": STEP, "embed_dim": 12, "depth": 2, "num_heads": 3}


class Chosen(token_study.Network):
    """In the place of compiled networks: two methods that keep what is known.

    The first keeps the left half of an image, whatever it shows, in its second block; the second
    the patches that are brighter than the mean in both blocks, the others merged into one. The
    dense network attends to what is bright.
    """

    def __init__(self):
        self.grid = GRID
        model = filled("deit_tiny_patch16_224", "none", **TINY)
        transform = EvalTransform(image_size=SIDE, resize=SIDE + 2 * STEP)
        self.first = ReadyModel("tiny", "left", model, transform)
        self.models = (self.first, dataclasses.replace(self.first, reduction="bright"))

    def look(self, seen, real):
        maps = [{}, {}]
        for view, pixels in seen.items():
            patches = pixels[real].reshape(-1, 4, STEP, 4, STEP, 3).mean(axis=(2, 4, 5))
            patches = patches.reshape(-1, 16)
            left = np.broadcast_to(np.arange(16) % 4 < 2, patches.shape).astype(int)
            maps[0][view] = np.stack([np.ones_like(left), left], axis=1)
            bright = patches > patches.mean(axis=1, keepdims=True)
            merged = np.where(bright, 1, (~bright).sum(axis=1, keepdims=True))
            maps[1][view] = np.stack([merged, merged], axis=1)
        maps[0][1] = maps[0]["plain"].copy()  # other weights of the first that keep the same
        maps[1][1] = maps[1]["flip"].copy()
        return maps, patches_of(seen["plain"][real])


def patches_of(pixels):
    means = pixels.reshape(-1, 4, STEP, 4, STEP, 3).mean(axis=(2, 4, 5)).reshape(-1, 16)
    return means.astype(np.float64)


def run(folder, rows=""):
    """A study of a folder's images by `Chosen`."""
    chosen = Chosen()
    config = evaluation.images_config(chosen.first, f"folder:{folder}")
    source = open_source(f"folder:{folder}", labels_needed=False)
    known = None
    if rows:
        (folder / "boxes.csv").write_text("file,x0,y0,x1,y1\n" + rows)
        known = objects.find(
            str(folder / "boxes.csv"), source, source, chosen.first.transform, 10**6, print
        )
    measures = token_study.Measures(GroupMeans(len(source)), GRID, known)
    with Progress() as progress:
        token_study.look_at_all(chosen, measures, source, config, progress)
    return token_study.Study(chosen.models, 2, GRID, measures.means)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of noise, each the mirror of itself."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        half = np.random.default_rng(i).integers(0, 256, (24, 12, 3), np.uint8)
        half = np.kron(half[::4, ::4], np.ones((4, 4, 1), np.uint8))
        Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def report(photos):
    """The object of image 0 is its left half, that of image 1 all of it."""
    rows = "00.png,0,0,12,24\n01.png,0,0,24,24\n"
    return token_report.report_of(run(photos, rows), f"folder:{photos}")


def test_a_method_that_looks_at_places_turns_with_a_flip_and_stays_with_a_move(report):
    left = report["rows"][0]
    assert left["tokens"] == 8
    assert left["flip"] == 0
    # Of the 3 x 3 patches in both views those of 2 columns in one, of the first in the other.
    assert left["shift"] == pytest.approx(3 / 6)
    assert 0 < left["flip_chance"] == pytest.approx(1 / 3, abs=0.02)
    assert left["by_block"]["tokens"] == [16, 8]
    assert left["blocks"] == 1  # it reduces in one block only
    assert left["seeds"] == 1


def test_an_image_that_is_its_own_mirror_agrees_with_its_flip(report):
    bright = report["rows"][1]
    assert bright["flip"] == 1
    assert bright["flip_chance"] < 0.6
    assert bright["seeds"] == 1
    assert bright["shift"] > 2 * bright["shift_chance"] - 1
    assert bright["blocks"] == 1


def test_the_agreement_of_two_methods_is_that_of_their_maps(report, photos):
    found = []
    for path in sorted(photos.glob("*.png")):
        (patches,) = patches_of(np.asarray(Image.open(path))[None, 4:20, 4:20])
        bright = patches > patches.mean()
        weight = np.where(bright, 1, 1 / (~bright).sum())
        left = np.arange(16) % 4 < 2
        found.append(np.minimum(left, weight).sum() / np.maximum(left, weight).sum())
    first, second = report["rows"]
    assert first["iou"] == [None, pytest.approx(np.mean(found), abs=1e-4)]
    assert second["iou"] == [first["iou"][1], None]
    assert second["iou_chance"][0] == first["iou_chance"][1]
    assert first["iou"][1] == pytest.approx(first["iou_chance"][1], abs=0.1)
    assert -0.5 < first["rank"][1] < 0.5


def test_what_is_bright_holds_more_of_what_is_bright(report):
    left, bright = report["rows"]
    # Mirrored images have half of everything on either side.
    assert left["attention"] == pytest.approx(0.5)
    assert left["share"] == 0.5
    assert bright["attention"] > bright["share"] + 0.05
    assert left["by_block"]["attention"] == pytest.approx([1, 0.5])


def test_tokens_on_the_object_are_compared_with_what_it_covers(report):
    left = report["rows"][0]
    assert left["objects"] == 2
    assert left["covered"] == 0.75
    assert left["object"] == 1  # all of its tokens are on the left half, as on the whole
    assert left["gain"] == pytest.approx(0.25)
    assert left["gain_low"] == 0
    assert left["gain_high"] == 0.5
    assert left["by_block"]["object"] == [0.75, 1]


def test_a_box_that_covers_all_has_all_tokens(photos):
    rows = "".join(f"{i:02}.png,0,0,24,24\n" for i in range(12))
    for row in token_report.rows_of(run(photos, rows)):
        assert (row["object"], row["covered"], row["gain"]) == (1, 1, 0)
        assert (row["gain_low"], row["gain_high"], row["objects"]) == (0, 0, 12)


def test_what_is_written(report, tmp_path):
    token_report.write(report, tmp_path)
    assert json.loads((tmp_path / "analyze.json").read_text()) == report
    with (tmp_path / "analyze.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["reduction"] for row in rows] == ["left", "bright"]
    assert float(rows[0]["iou bright"]) == report["rows"][0]["iou"][1]
    text = (tmp_path / "analyze.md").read_text()
    title, _, header, *_ = text.splitlines()
    assert title.startswith("tiny, 12 images of photos")
    assert header == (
        "|  | reduction | tokens | flip | move | first block | weights | attention | object | gain "
        "| IoU with 1 | IoU with 2 |"
    )
    assert "| 1 | `left` | 8 | 0.00 (0.34) |" in text
    assert "+25.0% (+0.0% to +50.0%)" in text
    assert "It covers 75.0% of the 2 images with boxes." in text
    with Image.open(tmp_path / "analyze.png") as picture:
        assert picture.width > 1000
        assert picture.height > 500


def test_without_boxes_attention_or_a_second_method_there_are_no_columns(report, tmp_path):
    row = {**report["rows"][0], "iou": [None], "iou_chance": [None], "rank": [None]}
    row |= dict.fromkeys(("attention", "object", "covered", "gain", "objects", "seeds", "blocks"))
    row["by_block"] = {"tokens": [16.0, 8.0]}
    alone = {**report, "rows": [row]}
    header, _, line = token_report.table([row]).splitlines()
    assert header == "|  | reduction | tokens | flip | move | first block | weights |"
    assert line.endswith("| - | - |")
    token_report.write(alone, tmp_path)
    assert "Object:" not in (tmp_path / "analyze.md").read_text()
