"""Every operation against timm's output, and the draws against their distribution."""

import collections
import pathlib
import random

import numpy as np
import pytest
from PIL import Image

from evovit_jax.data import randaugment
from evovit_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "randaugment_ops.npz"
CASES = sorted(
    name for name in np.load(GOLDEN).files if name != "image" and not name.endswith("/arg")
)


def test_golden_file_has_every_operation():
    names = {name.partition("/")[0].removesuffix("Increasing") for name in CASES}
    assert names == set(randaugment.OPERATIONS)


@pytest.mark.parametrize("case", CASES)
def test_operation_equals_timm_to_the_pixel(case):
    golden = np.load(GOLDEN)
    name, magnitude, *sign = case.split("/")
    operation = name.removesuffix("Increasing")
    value = randaugment.argument(
        operation, float(magnitude.removeprefix("mag")), -1 if sign == ["minus"] else 1
    )
    want = golden[f"{case}/arg"]
    if value is None:
        assert want.size == 0
    else:
        np.testing.assert_allclose(value, want[0], rtol=1e-12)
    image = Image.fromarray(golden["image"])
    got = randaugment.OPERATIONS[operation](image, value, randaugment.Drawing())
    np.testing.assert_array_equal(np.asarray(got), golden[case])


def test_no_bits_is_black():
    assert randaugment.argument("Posterize", 10, 1) == 0
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    got = randaugment.OPERATIONS["Posterize"](image, 0, randaugment.Drawing())
    assert np.asarray(got).max() == 0


@pytest.mark.parametrize(
    ("operation", "magnitude", "value"),
    [("Posterize", 5, 2), ("Solarize", 5, 128), ("Color", 5, 1.0), ("Sharpness", 10, 1.9)],
)
def test_arguments_without_inc(operation, magnitude, value):
    assert randaugment.argument(operation, magnitude, 1, increasing=False) == pytest.approx(value)


def test_enhancing_never_reaches_zero():
    assert randaugment.argument("Color", 10, -1) == pytest.approx(0.1)


def test_notation():
    assert randaugment.parse("rand-m9-mstd0.5-inc1") == randaugment.RandAugment(
        magnitude=9, noise=0.5, increasing=True
    )
    assert randaugment.parse("rand-m7-n3-p1-mmax8") == randaugment.RandAugment(
        magnitude=7, layers=3, prob=1.0, largest=8
    )
    for bad in ("augmix-m3", "rand-x9", "rand-m", "m9", "rand-n2.5", "rand-m9-tweights"):
        with pytest.raises(UserError, match="rand-m9-mstd0"):
            randaugment.parse(bad)
    with pytest.raises(UserError, match="'mmax20' is more than 10"):
        randaugment.parse("rand-m9-mmax20")


def test_draws(monkeypatch):
    applied = collections.Counter()
    arguments = collections.defaultdict(list)

    def record(name):
        def operation(image, value, drawing):
            applied[name] += 1
            arguments[name].append(value)
            return image

        return operation

    for name in list(randaugment.OPERATIONS):
        monkeypatch.setitem(randaugment.OPERATIONS, name, record(name))
    augment = randaugment.parse("rand-m9-mstd0.5-inc1")
    rng, image = random.Random(0), Image.new("RGB", (1, 1))
    for _ in range(6000):
        augment(image, rng, randaugment.Drawing())
    # Two draws, each applied half of the time, over fifteen operations.
    assert abs(sum(applied.values()) / 6000 - 1) < 0.03
    assert all(abs(count / 400 - 1) < 0.2 for count in applied.values())
    degrees = np.array(arguments["Rotate"])
    assert abs((degrees > 0).mean() - 0.5) < 0.1
    assert abs(np.abs(degrees).mean() - 27) < 0.3  # 30 * 9 / 10, clipped at 30
    assert np.abs(degrees).max() <= 30
    assert abs(np.abs(degrees).std() - 1.5) < 0.3
