"""The command that shows kept tokens: from files, from a data set, and what it refuses."""

import json
import os

import numpy as np
import pytest
from hostile_files import irregular
from PIL import Image
from tiny import some_slow

from evovit_jax import visualize
from evovit_jax.data.decode import open_image
from evovit_jax.errors import UserError
from evovit_jax.inference import token_pictures, visualization
from evovit_jax.inference.ready_model import prepare
from evovit_jax.reduction import list_reductions

pytestmark = pytest.mark.usefixtures("shallow")
MODEL = ["--model=deit_shallow_patch16_224", "--image_size=64", "--num_classes=5"]


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_writes_one_picture_an_image(photo, tmp_path, capsys):
    arguments = [*MODEL, "--reduction=evo", str(photo), str(photo), f"--output={tmp_path}/out"]
    assert visualize.main([*arguments, "--json"]) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["model"] == "deit_shallow_patch16_224"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["photo.png", "photo_2.png"]
    with Image.open(tmp_path / "out" / "photo.png") as picture:
        assert picture.width > picture.height > 100


METHODS = [name for name in list_reductions() if name != "none"]


@pytest.mark.parametrize("name", some_slow(METHODS, {"evo", "sit"}))
def test_every_reducer_has_a_picture(name, photo):
    """Panels that differ from the untouched grid, whatever the method does to the tokens."""
    prepared = prepare("deit_shallow_patch16_224", reduction=name, image_size=64)
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


HOSTILE = [
    "$\\frac$.jpg", "$x$.png", "a\nb.png", "<img src=x>.png", "a|b.png", "\udcff\udcfe.png",
    "\x1b[31m.png", "x" * 250 + ".png", "^_{.png",
]  # fmt: skip


@pytest.mark.parametrize("data", some_slow([False, True], {True}))
def test_names_of_any_kind_have_pictures(data, tmp_path, monkeypatch, capsys):
    """Of files, and of class folders."""
    model = prepare("deit_tiny_patch16_224", reduction="evit", image_size=32, depth=2)
    monkeypatch.setattr(visualize.model_flags, "prepare_from", lambda flags: model)
    monkeypatch.setattr(token_pictures.Figure, "savefig", save_small)
    names = []
    for name in HOSTILE:
        names.append(os.path.join(tmp_path, "in", name[:249], "0.png" if data else name))
        os.makedirs(os.path.dirname(names[-1]))
        Image.new("RGB", (40, 40)).save(names[-1])
    given = [f"--data=folder:{tmp_path}/in", "--count=20"] if data else names
    assert visualize.main(["--model=x", *given, f"--output={tmp_path}/out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"]
    assert sorted(found) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert len(found) == len(HOSTILE)


def save_small(figure, path, dpi):
    """The text is laid out, which is what may fail; pixels are few."""
    figure.canvas.draw()
    Image.new("RGB", (1, 1)).save(path)


def test_no_picture_replaces_another_or_an_image(tmp_path):
    (tmp_path / "in").mkdir()
    free = visualization.FreeNames(tmp_path, [str(tmp_path / "photo.png")])
    stems = ["a", "a", "a_2", "A", "photo", "x/../y", "..", ""]
    names = [free.path(stem).name for stem in stems]
    assert names == [
        "a.png", "a_2.png", "a_2_2.png", "A_3.png", "photo_2.png", "x_.._y.png", "...png", ".png",
    ]  # fmt: skip


def test_a_link_is_replaced_not_followed(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(token_pictures.Figure, "savefig", save_small)
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / "photo.png").symlink_to(tmp_path / "precious")
    visualize.main([*MODEL, str(photo), f"--output={tmp_path}/out"])
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "out" / "photo.png").is_symlink()


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder"])
def test_what_is_no_regular_file_is_refused(kind, tmp_path):
    with pytest.raises(UserError, match=r"cannot read image .*no regular file"):
        next(visualization.pictures_of_files([irregular(tmp_path, kind)]))
