"""The command that shows kept tokens: from files, from a data set, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from evovit_jax import visualize
from evovit_jax.data.decode import open_image
from evovit_jax.errors import UserError
from evovit_jax.inference import token_pictures, visualization
from evovit_jax.inference.ready_model import prepare
from evovit_jax.reduction import list_reductions

MODEL = ["--model=deit_tiny_patch16_224", "--image_size=64", "--num_classes=5"]


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_writes_one_picture_an_image(photo, tmp_path, capsys):
    arguments = [*MODEL, "--reduction=evo", str(photo), str(photo), f"--output={tmp_path}/out"]
    assert visualize.main([*arguments, "--json"]) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["model"] == "deit_tiny_patch16_224"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["photo.png", "photo_2.png"]
    with Image.open(tmp_path / "out" / "photo.png") as picture:
        assert picture.width > picture.height > 100


@pytest.mark.parametrize("name", [n for n in list_reductions() if n != "none"])
def test_every_reducer_has_a_picture(name, photo):
    """Panels that differ from the untouched grid, whatever the method does to the tokens."""
    prepared = prepare("deit_tiny_patch16_224", reduction=name, image_size=64, depth=4)
    crop = prepared.crop(open_image(photo.read_bytes()))
    _, maps = visualization.token_maps(prepared, crop[None])
    shown = token_pictures.panels([m[0] for m in maps], prefix=1, grid=(4, 4))
    assert len(maps) == 4
    assert not shown[-1].kept.all()


def test_draws_a_data_set(tmp_path):
    arguments = [*MODEL, "--data=tfds:digits:test", "--count=2", f"--output={tmp_path}"]
    visualize.main(arguments)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:5] for name in names] == ["00000", "00001"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give image files, or --data"),
        (["missing.png"], "cannot read image missing.png"),
        (["x.png", "--data=tfds:digits"], "one of the two"),
        (["--data=tfds:digits", "--count=-1"], "--count=-1 must be at least 1"),
    ],
)
def test_bad_images_are_named(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        visualize.main([*MODEL, *arguments, f"--output={tmp_path}/out"])


def test_a_bad_image_of_a_data_set_is_named(tmp_path):
    (tmp_path / "data" / "class").mkdir(parents=True)
    (tmp_path / "data" / "class" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read image .*a\.png"):
        visualize.main([*MODEL, f"--data=folder:{tmp_path}/data", f"--output={tmp_path}/out"])


def test_images_and_pictures_may_be_under_the_home_directory(photo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    visualize.main([*MODEL, "~/photo.png", "--output=~/out"])
    assert (tmp_path / "out" / "photo.png").is_file()


def test_a_folder_that_cannot_be_made_is_named(photo, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --output"):
        visualize.main([*MODEL, str(photo), f"--output={tmp_path}/file/out"])


def test_a_model_must_be_named(photo, tmp_path):
    with pytest.raises(UserError, match="say which model"):
        visualize.main([str(photo), f"--output={tmp_path}"])


def test_a_model_without_tokens_is_named(photo, tmp_path, monkeypatch):
    small = {"widths": (112,), "depth": (1,), "stem_width": 8, "num_classes": 5}
    model = prepare("regnety_160", image_size=32, **small)
    monkeypatch.setattr(visualize.model_flags, "prepare_from", lambda flags: model)
    with pytest.raises(UserError, match=r"regnety_160 has no tokens to show"):
        visualize.main(["--model=regnety_160", str(photo), f"--output={tmp_path}/out"])
