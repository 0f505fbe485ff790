"""Token counts: those of the network itself, of any stride, without values of parameters."""

import jax
import pytest
from flax import nnx
from tiny import run_model, some_slow

from evovit_jax.models import abstract_model, create_model
from evovit_jax.reduction import Backbone, create_reducer, token_counts

LEVIT = {
    "image_size": 80,
    "embed_dim": (16, 24),
    "key_dim": 4,
    "num_heads": (2, 3),
    "depth": (2, 2),
}


SPECS = ["evit,keep_rate=0.5", "evo,first_block=1"]


@pytest.mark.parametrize("reduction", some_slow(SPECS, SPECS[:1]))
def test_they_are_those_of_the_networks_pass(reduction):
    model = create_model("evo_levit_128s", reduction, **LEVIT)
    counts = token_counts.count(model.reducer, (5, 5))
    _, out = run_model(model, jax.random.normal(jax.random.key(0), (1, 80, 80, 3)))
    assert [c.entering for c in counts[::2]] == [26, 10]
    assert counts[1].feed_forward < 26
    assert [int(m.max()) + 1 for m in out.token_maps[:-1]] == [c.feed_forward for c in counts]


def test_the_stride_is_the_backbones():
    backbone = Backbone(3, (8, 8, 8), (2, 2, 2), (9, 10), 1, (1, 1, 1), stride=3)
    reducer = create_reducer("none", backbone, rngs=nnx.Rngs(0))
    assert [c.entering for c in token_counts.count(reducer, (9, 10))] == [91, 1 + 3 * 4, 1 + 1 * 2]


def test_parameters_need_no_values():
    model = abstract_model("evo_levit_128s")
    counts = token_counts.count(model.reducer, model.grid)
    # All of 14x14; then half of 7x7, and half of 4x4, with a class and a representative token.
    assert [c.attention for c in counts] == [197, 197, 26, 26, 26, 10, 10, 10, 10]
