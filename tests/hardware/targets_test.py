"""Accelerators that are not here, by name."""

import pytest

from evovit_jax.errors import UserError
from evovit_jax.hardware import targets


def test_targets_are_known_by_generation_and_size():
    found = targets.parse("v5e:8x8")
    assert (found.chips, found.platform, found.links, str(found)) == (64, "tpu", 200e9, "v5e:8x8")
    assert str(targets.parse("v5p")) == "v5p:2x2x1"
    assert [one.chips for one in found.sizes()][:3] == [4, 8, 16]
    host = targets.parse("h100:1x8")
    assert (host.chips, host.platform, host.links) == (8, "gpu", 450e9)
    assert targets.parse("h100:2x8").links == 50e9
    assert str(targets.parse("b200")) == "b200:1x1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v9", "--topology=v9 is unknown; there are v4, v5e, v5p, v6e, a100, h100, h200, b200"),
        ("v5e:1x1", "--topology=v5e:1x1: sizes of v5e are 2x2, 2x4"),
        ("v5p:2x2", "--topology=v5p:2x2: sizes of v5p are 2x2x1"),
        ("h100:8", "--topology=h100:8: sizes of h100 are 1x1, 1x2, 1x4, 1x8"),
    ],
)
def test_what_is_no_target_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        targets.parse(text)
