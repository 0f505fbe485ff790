"""What files pack differently, taken apart and put together again."""

import numpy as np
import pytest

from evovit_jax.errors import UserError
from evovit_jax.weights.repacking import (
    folded_class_position,
    prefixed,
    renamed,
    split,
    stacked,
    without_bias,
    written,
    zeros,
)


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("first", ["a.", "b.c.", ""])
def test_a_prefix_becomes_the_usual_one(first):
    repacking = prefixed("a.", ["b.c.", ""], "x.weight")
    found = {f"{first}x.weight": np.ones(2), f"{first}y": np.zeros(1)}
    assert_same(repacking.unpack(found), {"a.x.weight": np.ones(2), "a.y": np.zeros(1)})
    assert_same(repacking.pack({"a.x.weight": np.ones(2)}), {"a.x.weight": np.ones(2)})


def test_only_what_has_the_prefix_gets_another():
    found = {"b.x.weight": np.ones(2), "text.y": np.zeros(1)}
    assert sorted(prefixed("a.", ["b.", ""], "x.weight").unpack(found)) == ["a.x.weight", "text.y"]
    other = {"z": np.ones(1)}
    assert_same(prefixed("a.", ["b.", ""], "x.weight").unpack(other), other)


def test_pieces_of_a_tensor():
    whole = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    repacking = split("w", ["q", "kv"], (1, 2))
    parts = {"q": whole[:2], "kv": whole[2:], "rest": np.ones(1)}
    assert_same(repacking.unpack({"w": whole, "rest": np.ones(1)}), parts)
    assert_same(repacking.pack(parts), {"w": whole, "rest": np.ones(1)})
    for odd in ({"w": whole[:5]}, {"w": np.asarray(1.0)}, {"other": whole}):
        assert_same(repacking.unpack(odd), odd)
    masked = split("w", ["q", None, "v"], (1, 1, 1))
    assert_same(masked.unpack({"w": whole}), {"q": whole[:2], "v": whole[4:]})
    zeroed = np.concatenate([whole[:2], np.zeros((2, 2)), whole[4:]])
    assert_same(masked.pack({"q": whole[:2], "v": whole[4:]}), {"w": zeroed})


def test_stacked_blocks():
    repacking = stacked("/blocks/", "/block_{}/")
    found = repacking.unpack({"p/blocks/w": np.array([[1, 2], [3, 4]]), "p/x": np.ones(1)})
    assert_same(found, {"p/block_0/w": [1, 2], "p/block_1/w": [3, 4], "p/x": np.ones(1)})
    assert_same(repacking.unpack(found), found)


def test_the_class_tokens_position():
    token, positions = np.full((1, 1, 2), 3.0), np.arange(10.0).reshape(1, 5, 2)
    repacking = folded_class_position("cls", "pos")
    found = repacking.unpack({"cls": token, "pos": positions})
    assert_same(found, {"cls": [[[3.0, 4.0]]], "pos": positions[:, 1:]})
    back = repacking.pack(found)
    np.testing.assert_array_equal(back["pos"][:, 0], np.zeros((1, 2)))
    assert_same(repacking.unpack(back), found)
    for other in ({"cls": token}, {"cls": token, "pos": positions[:, :4]}, {"cls": 1, "pos": 2}):
        other = {name: np.asarray(value) for name, value in other.items()}
        assert_same(repacking.unpack(other), other)


def test_a_bias_that_files_have_not():
    repacking = without_bias("b", "w", 1)
    weight = np.ones((2, 3), np.float32)
    assert_same(repacking.unpack({"w": weight}), {"w": weight, "b": np.zeros(3)})
    assert_same(repacking.unpack({"w": weight[0]}), {"w": weight[0]})
    assert_same(repacking.pack({"w": weight, "b": np.zeros(3)}), {"w": weight})
    with pytest.raises(UserError, match="no place for a bias beside w, and it is not 0"):
        repacking.pack({"w": weight, "b": np.ones(3)})


def test_zeros_and_constants():
    repacking = zeros(["a", "b"], 2, "do this")
    assert_same(repacking.unpack({"a": np.zeros(2), "c": np.ones(1)}), {"c": np.ones(1)})
    assert_same(repacking.pack({}), {"a": np.zeros(2), "b": np.zeros(2)})
    with pytest.raises(UserError, match="tensor b is not zero, and the model has none: do this"):
        repacking.unpack({"b": np.ones(2)})
    assert_same(written({"mask": np.ones(1)}).pack({}), {"mask": np.ones(1)})
    assert_same(written({"mask": np.ones(1)}).unpack({}), {})


def test_other_names():
    repacking = renamed((r"blocks\.\d+\.(\d+\..*)", r"blocks.\1"))
    found = repacking.unpack({"blocks.0.3.w": np.ones(1), "blocks.1.w": np.zeros(1)})
    assert_same(found, {"blocks.3.w": np.ones(1), "blocks.1.w": np.zeros(1)})
