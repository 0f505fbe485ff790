"""Boxes of a folder's images in what a model sees of them."""

import numpy as np
import pytest
from PIL import Image

from evovit_jax.data.source import Drawn, open_source
from evovit_jax.data.stored_files import MOST_PIXELS
from evovit_jax.errors import UserError
from evovit_jax.inference import objects
from evovit_jax.models import EvalTransform

TRANSFORM = EvalTransform(image_size=32, resize=32)
GRID = (4, 4)


@pytest.fixture
def folder(tmp_path):
    """Images twice as wide as high: the model sees columns 16 to 47."""
    for name in "abc":
        Image.new("RGB", (64, 32)).save(tmp_path / f"{name}.png")
    return tmp_path


def find(folder, rows, images=None):
    (folder / "boxes.csv").write_text("file,x0,y0,x1,y1\n" + rows)
    source = open_source(f"folder:{folder}", labels_needed=False)
    said = []
    images = source if images is None else images(source)
    return objects.find(
        str(folder / "boxes.csv"), source, images, TRANSFORM, MOST_PIXELS, said.append
    ), said


def test_what_the_model_sees_of_each_object(folder):
    found, said = find(folder, "a.png,16,0,32,32\nc.png,0,0,64,8\n")
    assert len(found) == 2
    assert said == []
    np.testing.assert_array_equal(found.covered(0, GRID).reshape(GRID), [[1, 1, 0, 0]] * 4)
    np.testing.assert_array_equal(found.covered(2, GRID), [1] * 4 + [0] * 12)
    assert np.isnan(found.covered(1, GRID)).all()


def test_boxes_outside_of_the_crop_are_said_and_left_out(folder):
    found, said = find(folder, "a.png,0,0,15,32\na.png,40,0,48,32\nb.png,50,0,60,32\n")
    assert len(found) == 1
    np.testing.assert_array_equal(found.covered(0, GRID).reshape(GRID), [[0, 0, 0, 1]] * 4)
    assert said == [
        f"2 boxes are outside of what the model sees, and left out: {folder}/boxes.csv line 2"
    ]


def test_rows_of_images_that_were_not_drawn_are_no_mistake(folder):
    rows = "a.png,16,0,32,32\nb.png,16,0,32,32\nc.png,16,0,32,32\n"
    found, _ = find(folder, rows, images=lambda source: Drawn(source, 1))
    assert len(found) == 1
    assert np.isfinite(found.covered(0, GRID)).all()


def test_a_box_that_leads_out_of_its_image_ends_the_command_before_it_has_begun(folder):
    with pytest.raises(UserError, match=r"line 2: the box ends at 65\.5, 32, its image at 64, 32"):
        find(folder, "a.png,16,0,65.5,32\n")


def test_an_image_that_cannot_be_read_has_no_object(folder):
    (folder / "a.png").write_bytes(b"none")
    found, _ = find(folder, "a.png,16,0,32,32\nb.png,16,0,32,32\n")
    assert np.isnan(found.covered(0, GRID)).all()
    assert len(found) == 1
