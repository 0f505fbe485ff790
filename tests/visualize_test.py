"""The command that shows kept tokens: from files, from a data set, and what it refuses."""

import json
import os

import numpy as np
import pytest
from flax import nnx
from hostile_files import irregular
from page_reading import array_of, data_of
from PIL import Image
from tiny import some_slow

from evovit_jax import visualize
from evovit_jax.data.decode import open_image
from evovit_jax.errors import UserError
from evovit_jax.inference import token_page, token_pictures, token_views, visualization
from evovit_jax.inference.ready_model import ReadyModel, prepare
from evovit_jax.inference.token_history import observer
from evovit_jax.models import EvalTransform
from evovit_jax.reduction import list_reductions
from evovit_jax.weights import save_weights

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
    seen = observer(prepared)(prepared.crop(open_image(photo.read_bytes())))
    shown = token_pictures.panels(seen.maps, prefix=seen.prefix, grid=seen.grid)
    assert len(seen.maps) == 4
    assert not shown[-1].kept.all()


@pytest.mark.slow
def test_a_page_and_a_grid_compare_reductions_with_the_dense_network(photo, tmp_path, capsys):
    """Of weights that hold what a reduction learned; the dense network leaves that out."""
    trained = prepare("deit_shallow_patch16_224", reduction="dynamicvit", image_size=64)
    save_weights(trained.model, tmp_path / "weights.npz")
    given = [MODEL[0], "--image_size=64", f"--weights={tmp_path}/weights.npz", str(photo)]
    where = [f"--html={tmp_path}/new/page.html", f"--grid={tmp_path}/grid.png"]
    assert visualize.main([*given, "--reduction=dynamicvit", *where, "--json"]) == 0
    *_, said, last = capsys.readouterr().out.strip().splitlines()
    assert said == f"the page is {tmp_path}/new/page.html"
    assert json.loads(last) == {
        "model": "deit_shallow_patch16_224",
        "pictures": [],
        "grid": f"{tmp_path}/grid.png",
        "page": f"{tmp_path}/new/page.html",
    }
    data = data_of((tmp_path / "new" / "page.html").read_text())
    dense, reduced = data["networks"]
    assert (dense["method"], reduced["method"]) == ("Dense", "DynamicViT")
    assert dense["gmacs"] > reduced["gmacs"] > 0
    last = [array_of(one["images"][0]["groups"], "<u2")[-16:] for one in (dense, reduced)]
    assert (last[0] == np.arange(16)).all()
    assert (last[1] == token_page.DROPPED).any()
    for network in (dense, reduced):
        (seen,) = network["images"]
        assert len(seen["attention"]) == 4
        assert all(0 < peak < 1 for peak in seen["peaks"])
        assert len(seen["answers"]) == 3
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 2 * picture.height


def test_the_dense_network_is_not_computed_twice(monkeypatch):
    """With networks of nothing, whose weights say how they were loaded."""
    transform = EvalTransform(image_size=16, resize=16)

    def prepare_from(flags):
        weights = "leniently" if flags.allow_missing else None
        return ReadyModel("m", flags.reduction or "none", nnx.Module(), transform, weights)

    monkeypatch.setattr(visualize.model_flags, "prepare_from", prepare_from)
    monkeypatch.setattr(token_views, "check_has_tokens", lambda network: None)

    def found(*arguments):
        asked, dense = token_views.networks(visualize.parse_flags(["x", *arguments]))
        assert [network.weights for network in asked] == [None] * len(asked)
        return [network.reduction for network in asked], dense and dense.reduction

    assert found("--html=x", "--reductions=evit;none;tome") == (["none", "evit", "tome"], None)
    assert found("--html=x", "--reduction=evit") == (["evit"], "none")
    assert found("--html=x") == (["none"], None)
    assert found("--output=x", "--reductions=evit;tome") == (["evit", "tome"], None)


def test_no_images(tmp_path):
    views = token_views.TokenViews([], None, token_views.Places(page=tmp_path / "x.html"))
    with pytest.raises(UserError, match="there are no images to show"):
        views.finish(None)


def test_nothing_to_write(photo):
    with pytest.raises(UserError, match="say what to write: --output=DIR, --grid=FILE"):
        visualize.main([*MODEL, str(photo)])


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
        (
            ["--data=tfds:digits", "--count=65", "--html=x.html"],
            "--html shows at most 64 images, not 65: give fewer files, or a smaller --count",
        ),
        (
            ["--data=tfds:digits", "--count=129", "--reductions=evit;tome", "--grid=x.png"],
            "--grid shows at most 256 rows, not 258: give fewer files, or a smaller --count",
        ),
        (["photo.png", "--html=page.txt"], r"--html=page.txt must end in \.html"),
        (["photo.png", "--html="], "--html is empty"),
        (["photo.png", "--html=gs://x/page.html"], "--html=gs://x is in an object store"),
        (["photo.png", "--html=folder.html"], "--html=folder.html is a folder; name a file"),
        (["photo.png", "--grid=photo.png"], "--grid=photo.png is one of the images"),
        (["photo.png", "--reductions="], "--reductions must name each reduction once"),
        (["photo.png", "--reductions=evit;evit"], "--reductions must name each reduction once"),
        (["photo.png", "--reduction=evit", "--reductions=evit"], "--reduction is for one"),
        (["photo.png", "--class_names=missing"], "cannot read class names missing"),
    ],
)
def test_what_cannot_be_used_is_named(arguments, message, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
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
    where = [f"--output={tmp_path}/out", f"--html={tmp_path}/x.html"]
    assert visualize.main(["--model=x", *given, *where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["pictures"]
    page = (tmp_path / "x.html").read_text()
    assert page.count("<script") == 2
    assert len(data_of(page)["images"]) == len(HOSTILE)
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
