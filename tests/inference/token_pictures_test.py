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
