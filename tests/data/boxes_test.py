"""boxes.csv: rows, what is refused, and where boxes are in a crop."""

import numpy as np
import pytest
from PIL import Image

from evovit_jax.data import boxes
from evovit_jax.data.source import open_source
from evovit_jax.data.transforms import resize_center_crop
from evovit_jax.errors import UserError

HEAD = "file,x0,y0,x1,y1\n"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "data" / "cat").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "data" / "cat" / name)
    return open_source(f"folder:{tmp_path}/data")


def read(tmp_path, source, text):
    (tmp_path / "boxes.csv").write_text(text)
    return boxes.read(str(tmp_path / "boxes.csv"), source)


def test_an_image_has_all_its_rows(tmp_path, source):
    rows = "cat/a.png,1,2,3,4\ncat/b.png,0,0,40,30\n./cat/a.png,5.5,6,7,8\n"
    found = read(tmp_path, source, HEAD + rows)
    assert [len(own) for own in found.values()] == [2, 1]
    assert [path[-5:] for path in found] == ["a.png", "b.png"]


def test_columns_may_be_in_any_order(tmp_path, source):
    found = read(tmp_path, source, "x1,author,y1,file,x0,y0\n3,me,4,cat/a.png,1,2\n")
    ((box,),) = found.values()
    assert box.edges == (1, 2, 3, 4)
    assert box.where.endswith("boxes.csv line 2")


def test_a_table_beside_images_names_its_files_as_labels_csv_does(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "x.png")
    (tmp_path / "labels.csv").write_text("file,label\nx.png,0\n")
    source = open_source(f"folder:{tmp_path}")
    assert len(read(tmp_path, source, HEAD + "x.png,1,2,3,4\nimages/x.png,1,2,3,4\n")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,x0,y0,x1\n", "must name the columns file, x0, y0, x1 and y1"),
        (HEAD, r"boxes.csv has no boxes"),
        (HEAD + "cat/a.png,1,2,3,4\ncat/z.png,1,2,3,4\n",
         r"line 3: no image 'cat/z.png' in folder:.*; give its path .* such as 'cat/a.png'"),
        (HEAD + ",1,2,3,4\n", "line 2: no image ''"),
        (HEAD + "cat/a.png,1,2,3\n", "line 2: y1 None is not a number"),
        (HEAD + "cat/a.png,1,x,3,4\n", "line 2: y0 'x' is not a number from 0; give pixels"),
        (HEAD + "cat/a.png,-1,2,3,4\n", "line 2: x0 '-1' is not a number from 0"),
        (HEAD + "cat/a.png,1,2,nan,4\n", "line 2: x1 'nan'"),
        (HEAD + "cat/a.png,1,2,1e999,4\n", "line 2: x1 '1e999'"),
        (HEAD + "cat/a.png,5,2,3,4\n", "line 2: the box from 5, 2 to 3, 4 is empty; x0 and y0"),
        (HEAD + "cat/a.png,1,2,3,2\n", "line 2: the box from 1, 2 to 3, 2 is empty"),
        (HEAD + "cat/a.png,1,2,3,4,5\n", "line 2 has more cells"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_their_mend(tmp_path, source, text, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, source, text)
    assert "boxes.csv" in str(error.value)


def test_a_table_that_is_none_is_named(tmp_path, source):
    with pytest.raises(UserError, match="cannot be read"):
        boxes.read(str(tmp_path), source)
    with pytest.raises(UserError, match=r"cannot be read: .*No such file"):
        boxes.read(str(tmp_path / "gone.csv"), source)


def test_a_data_set_without_files_has_no_boxes(tmp_path):
    with pytest.raises(UserError, match="--boxes goes with --data=folder:PATH, tfds:x has"):
        boxes.read(str(tmp_path / "boxes.csv"), InMemory())


class InMemory:
    """A source without a folder."""

    name, num_classes, class_names, has_names = "tfds:x", 1, ["x"], False

    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError

    def describe(self, index):
        return f"tfds:x[{index}]"


def box(*edges):
    return boxes.Box(edges, "boxes.csv line 2")


@pytest.mark.parametrize("size", [(64, 64), (64, 48), (48, 80), (33, 31)])
@pytest.mark.parametrize(("shorter", "side"), [(32, 32), (36, 32), (24, 32)])
def test_a_box_is_where_its_pixels_are_in_the_crop(size, shorter, side):
    """A white rectangle, taken through the transform, against its box."""
    x0, y0 = size[0] // 4, size[1] // 4
    x1, y1 = x0 + 20, y0 + 20
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    crop = resize_center_crop(pixels, shorter, side, "bilinear") / 255
    place = boxes.in_crop([box(x0, y0, x1, y1)], size, shorter, side)
    covered = boxes.coverage(place, (side, side), side)
    assert abs(covered - crop).max() <= 0.9  # pixels that an edge goes through
    assert abs(covered.sum() - crop.sum()) < 0.06 * side**2
    middle = (place[0, :2] + place[0, 2:]).astype(int) // 2
    assert crop[middle[1], middle[0]] == covered[middle[1], middle[0]] == 1


def test_boxes_that_overlap_count_once_and_a_whole_box_covers_all():
    whole = boxes.in_crop([box(0, 0, 40, 30)], (40, 30), 34, 32)
    np.testing.assert_array_equal(boxes.coverage(whole, (4, 4), 32), np.ones((4, 4)))
    two = boxes.in_crop([box(0, 0, 24, 32), box(8, 0, 16, 8)], (32, 32), 32, 32)
    np.testing.assert_array_equal(boxes.coverage(two, (1, 2), 32), [[1, 0.5]])
    # A grid that does not divide the side: cells of 10, 11 and 11 pixels.
    np.testing.assert_allclose(boxes.coverage(two, (1, 3), 32), [[1, 1, 3 / 11]])


def test_a_box_over_the_edge_of_its_image_is_named():
    boxes.in_crop([box(0, 0, 40.6, 31)], (40, 30), 32, 32)
    with pytest.raises(
        UserError, match="line 2: the box ends at 60, 20, its image at 40, 30; give"
    ):
        boxes.in_crop([box(1, 1, 60, 20)], (40, 30), 32, 32)
