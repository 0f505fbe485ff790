"""Pictures of token maps: what is kept, merged and dropped, and how it is painted."""

import numpy as np

from evovit_jax.inference import token_pictures

# Four patches on a 2x2 grid after one class token.
ALL = np.arange(5, dtype=np.int32)
MERGED = np.array([0, 1, 2, 2, 3], np.int32)  # patches 1 and 2 share a token
DROPPED = np.array([0, 1, -3, -3, 2], np.int32)  # patches 1 and 2 left at block 2
RELABELLED = np.array([0, 2, -3, -3, 1], np.int32)  # the same groups, other places


def panels(*maps):
    return token_pictures.panels(list(maps), prefix=1, grid=(2, 2))


def test_one_panel_for_each_change():
    found = panels(ALL, ALL, MERGED, DROPPED, RELABELLED)
    assert [(panel.first, panel.last) for panel in found] == [(0, 1), (2, 2), (3, 4)]
    np.testing.assert_array_equal(found[1].kept, [[True, False], [False, True]])
    np.testing.assert_array_equal(found[2].group < 0, [[False, True], [True, False]])


def test_titles_count_the_patches():
    titles = [panel.title for panel in panels(ALL, ALL, MERGED, DROPPED)]
    assert titles == ["blocks 0-1: 4 kept", "block 2: 2 kept, 2 into 1", "block 3: 2 kept, 2 out"]


def test_the_class_token_in_a_group_makes_its_patch_merged():
    (panel,) = panels(np.array([0, 0, 1, 2, 3], np.int32))
    np.testing.assert_array_equal(panel.kept, [[False, True], [True, True]])


def test_painting_leaves_kept_patches_and_fades_the_others():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, 2:], image[2:, :2] = 200, 100
    merged = token_pictures.paint(image, panels(MERGED)[0])
    np.testing.assert_allclose(merged[:2, :2], 0)
    share, mean = token_pictures.MERGED_SHARE, 150 / 255
    np.testing.assert_allclose(merged[0, 2], share * 200 / 255 + (1 - share) * mean)
    np.testing.assert_allclose(merged[2, 0], share * 100 / 255 + (1 - share) * mean)
    dropped = token_pictures.paint(image, panels(DROPPED)[0])
    share = token_pictures.DROPPED_SHARE
    np.testing.assert_allclose(dropped[0, 2], share * 200 / 255 + (1 - share))
    np.testing.assert_allclose(dropped[3, 3], 0)


def test_figures_wrap_after_six():
    image = np.zeros((4, 4, 3), np.uint8)
    shown = panels(*[ALL, MERGED] * 4)
    assert len(shown) == 8
    drawing = token_pictures.figure(image, shown, title="t")
    titles = [axis.get_title() for axis in drawing.axes if axis.get_title()]
    assert titles[0] == "image"
    assert len(titles) == 9
    assert len(drawing.axes) == 12


def test_at_most_so_many_evenly_spaced():
    assert token_pictures.spaced(range(12), 6) == [1, 3, 5, 7, 9, 11]
    assert token_pictures.spaced([3, 6, 9], 6) == [3, 6, 9]
    assert token_pictures.spaced(range(12), 1) == [11]


def test_a_grid_has_the_blocks_at_which_tokens_move():
    image = np.zeros((4, 4, 3), np.uint8)
    rows = [
        token_pictures.Row(("$x$", "evit"), image, panels(ALL, MERGED, MERGED, DROPPED)),
        token_pictures.Row(("y", "z" * 99), image, panels(ALL, ALL, DROPPED, DROPPED)),
    ]
    drawing = token_pictures.grid(rows)
    titles = [axis.get_title() for axis in drawing.axes]
    assert titles == ["input", "block 1", "block 2", "block 3", *[""] * 4]
    beside = [axis.texts[0].get_text() for axis in drawing.axes if axis.texts]
    assert beside[0] == "$x$\nevit"
    assert len(beside[1]) < 30
    drawing.canvas.draw()


def test_a_grid_of_networks_that_keep_all_tokens_has_the_last_block():
    assert token_pictures.changing_blocks([panels(ALL, ALL, ALL)]) == [2]
    assert token_pictures.changing_blocks([panels(MERGED, MERGED)]) == [0]


def test_a_strip_is_of_whole_pixels():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, 2:], image[2:, :2] = 200, 100
    found = token_pictures.strip(image, panels(ALL, DROPPED), most=9, side=8)
    gap = token_pictures.GAP
    assert found.shape == (8, 3 * 8 + 2 * gap, 3)
    np.testing.assert_array_equal(found[:, :8], image.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(found[:, 8 + gap : 16 + gap], found[:, :8])
    assert (found[:, 8 : 8 + gap] == 255).all()
    assert (found[:4, -4:] == round(255 - (255 - 200) * token_pictures.DROPPED_SHARE)).all()
    small = token_pictures.strip(image, panels(ALL, DROPPED), most=1, side=2)
    assert small.shape == (2, 2 * 2 + gap, 3)
    np.testing.assert_array_equal(small[:, :2, 0], [[0, 200], [100, 0]])
