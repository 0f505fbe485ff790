"""Windows of maps that they divide and do not, against a loop over places."""

import jax
import numpy as np
import pytest

from evovit_jax.models.windows import APART, Windows, table_rows

# Map, window, shifted: divided; padded; smaller along one axis; smaller; of one place.
CASES = [
    ((4, 6), (2, 2), True),
    ((5, 7), (3, 3), True),
    ((5, 7), (3, 3), False),
    ((4, 9), (4, 4), True),
    ((2, 3), (4, 4), True),
    ((1, 5), (1, 1), True),
    ((7, 5), (3, 2), True),
]


def by_place(windows):
    """For each window and place in it the place of the map there, None beyond the map."""
    (rows, columns), (height, width) = windows.grid, windows.size
    found = []
    for top in range(0, windows.padded[0], height):
        for left in range(0, windows.padded[1], width):
            places = [(top + i, left + j) for i in range(height) for j in range(width)]
            found.append(
                [
                    ((y + windows.shift[0]) % rows, (x + windows.shift[1]) % columns)
                    if y < rows and x < columns
                    else None
                    for y, x in places
                ]
            )
    return found


@pytest.mark.parametrize(("grid", "size", "shifted"), CASES)
def test_windows_are_those_of_the_rolled_map_and_join_to_it(grid, size, shifted):
    windows = Windows.of(grid, size, shifted=shifted)
    x = np.random.default_rng(0).normal(size=(2, *grid, 3)).astype(np.float32)
    expected = [
        [np.zeros((2, 3)) if at is None else x[:, at[0], at[1]] for at in places]
        for places in by_place(windows)
    ]
    found = jax.jit(windows.split)(x)
    np.testing.assert_array_equal(found, np.moveaxis(np.array(expected), 2, 0))
    np.testing.assert_array_equal(jax.jit(windows.join)(found), x)


def test_a_shift_is_half_a_window_along_axes_that_have_more_than_one():
    assert Windows.of((4, 9), (4, 4), shifted=True).shift == (0, 2)
    assert Windows.of((8, 9), (3, 5), shifted=True).shift == (1, 2)
    assert Windows.of((8, 9), (3, 5), shifted=False).shift == (0, 0)
    assert Windows.of((3, 9), (7, 7), shifted=True) == Windows((3, 9), (3, 7), (0, 3))


@pytest.mark.parametrize(("grid", "size", "shifted"), CASES)
def test_a_mask_parts_what_an_edge_of_the_map_parts(grid, size, shifted):
    windows = Windows.of(grid, size, shifted=shifted)
    mask = windows.mask()
    if not any(windows.shift):
        assert mask is None
        return
    # On the rolled and padded map, the places behind the last `shift` came from the other edge.
    apart = np.zeros(mask.shape, bool)
    places = windows.size[0] * windows.size[1]
    for number in range(mask.shape[0]):
        window = np.divmod(number, windows.counts[1])
        inside = np.stack(np.divmod(np.arange(places), windows.size[1]), axis=1)
        at = inside + np.array(window) * windows.size
        for axis in (0, 1):
            if windows.shift[axis]:
                wrapped = at[:, axis] >= windows.padded[axis] - windows.shift[axis]
                apart[number] |= wrapped[:, None] != wrapped[None, :]
    np.testing.assert_array_equal(mask, np.where(apart, APART, 0.0))
    assert mask.dtype == np.float32


@pytest.mark.parametrize("size", [(3, 3), (2, 3), (1, 2)])
def test_a_row_of_biases_for_each_difference(size):
    table = (3, 4)
    differences = np.empty((table_rows(table), 2), int)
    for dy in range(-2, 3):
        for dx in range(-3, 4):
            differences[(dy + 2) * 7 + dx + 3] = dy, dx
    index = Windows(size, size, (0, 0)).bias_index(table)
    for query in range(size[0] * size[1]):
        for key in range(size[0] * size[1]):
            expected = np.subtract(np.divmod(query, size[1]), np.divmod(key, size[1]))
            np.testing.assert_array_equal(differences[index[query, key]], expected)
