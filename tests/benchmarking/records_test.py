"""Records: found by their key alone, whole or not at all, and damage is said."""

import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image
from tiny import filled

from evovit_jax.benchmarking import identity
from evovit_jax.benchmarking.records import FOLDER, Records
from evovit_jax.config import get_config
from evovit_jax.data.source import open_source
from evovit_jax.errors import UserError
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models import EvalTransform

TINY = {"image_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3}
KEY = {"model": "m", "devices": ["cpu", "cpu"], "search": 0.8, "classes": None}


def test_a_record_is_found_by_its_whole_key(tmp_path):
    records = Records(tmp_path)
    assert records.read(KEY) is None
    records.write(KEY, {"ranks": [0, 3], "gmacs": 0.1})
    assert Records(tmp_path).read(KEY) == {"ranks": [0, 3], "gmacs": 0.1}
    for name, other in (("model", "n"), ("search", 0.80001), ("devices", ["cpu"])):
        assert records.read(KEY | {name: other}) is None
    records.write(KEY, {"ranks": []})
    assert records.read(KEY) == {"ranks": []}
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    Records(None).write(KEY, {})
    assert Records(None).read(KEY) is None


@pytest.mark.parametrize(
    "damage", ["cut", "changed", "other key", "empty", "list", "deep", "folder"]
)
def test_damage_is_said_and_computed_again(tmp_path, damage):
    said = []
    records = Records(tmp_path, said.append)
    records.write(KEY, {"ranks": [0, 3]})
    (path,) = (tmp_path / FOLDER).iterdir()
    text = path.read_text()
    record = json.loads(text)
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_text({
            "cut": text[:-9],
            "changed": text.replace("[0, 3]", "[0, 0]"),
            "other key": json.dumps(record | {"key": KEY | {"model": "n"}}),
            "empty": "",
            "list": "[]",
            "deep": "[" * 100_000,
        }[damage])  # fmt: skip
    assert records.read(KEY) is None
    assert len(said) == 1
    assert said[0].startswith(f"{path} is damaged (")
    assert said[0].endswith("): it is computed again")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(UserError, match=FOLDER):
        Records(tmp_path).write(KEY, {})


def test_the_key_has_all_that_a_result_depends_on():
    model = filled("deit_tiny_patch16_224", "none", **TINY)
    transform = EvalTransform(image_size=16, resize=16)
    ready = ReadyModel("deit_tiny_patch16_224", "none", model, transform)
    config = get_config()
    keys = [identity.evaluated(ready, config, "images")]
    assert keys[0] == json.loads(json.dumps(identity.evaluated(ready, config, "images")))
    for change in (
        {"reduction": "topk,keep_rate=0.5"},
        {"transform": EvalTransform(image_size=16, resize=18)},
        {"max_image_pixels": 9},
    ):
        keys.append(identity.evaluated(dataclasses.replace(ready, **change), config, "images"))
    keys.append(identity.evaluated(ready, config, "others"))
    config.eval_batch_size += 1
    keys.append(identity.evaluated(ready, config, "images"))
    model.head.bias[...] += 1e-6
    keys.append(identity.evaluated(ready, config, "images"))
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys) == 7


def test_images_are_told_apart_by_name_label_size_and_time(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n0.png,0\n1.png,1\n2.png,0\n")

    def found():
        return identity.images(open_source(f"folder:{tmp_path}"))

    seen = [found()]
    assert found() == seen[0]
    table.write_text("file,label\n0.png,0\n1.png,1\n2.png,1\n")
    seen.append(found())
    os.utime(tmp_path / "1.png", ns=(0, 0))
    seen.append(found())
    table.unlink()
    seen.append(identity.images(open_source(f"folder:{tmp_path}", labels_needed=False)))
    assert len(set(seen)) == 4
