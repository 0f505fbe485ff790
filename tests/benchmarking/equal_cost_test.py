"""Settings at a cost: the nearest there is, for every method; what is said where there is none."""

import itertools
import random

import pytest
from tiny import some_slow

from evovit_jax import reduction
from evovit_jax.benchmarking import equal_cost
from evovit_jax.benchmarking.records import Records
from evovit_jax.errors import UserError
from evovit_jax.models import abstract_model

TINY = {"image_size": 16, "patch_size": 2, "embed_dim": 12, "depth": 3, "num_heads": 3}
NOWHERE = Records(None)


def test_the_nearest_of_any_costs_that_do_not_fall():
    drawn = random.Random(0)
    for _ in range(300):
        costs = sorted(drawn.choice((drawn.random(), 0.5)) for _ in range(drawn.randint(1, 40)))
        target, asked = drawn.uniform(-0.2, 1.2), set()

        def cost(i, costs=costs, asked=asked):
            asked.add(i)
            return costs[i]

        found = equal_cost.nearest(range(len(costs)), cost, target)
        assert abs(costs[found] - target) == min(abs(c - target) for c in costs)
    squares = [i * i for i in range(1000)]
    asked = []
    assert equal_cost.nearest(range(1000), lambda i: asked.append(i) or squares[i], 250_001) == 500
    assert len(set(asked)) < 20


@pytest.fixture(scope="module")
def dense():
    return abstract_model("deit_tiny_patch16_224", "none", **TINY)


def rise_on_the_whole(costs):
    """Of the few tokens of a tiny network one more or less, by rounding, is some per cent."""
    return all(after > 0.95 * before for before, after in itertools.pairwise(costs))


FREE = [spec for spec in equal_cost.training_free() if not spec.startswith("diffrate")]


@pytest.mark.parametrize("spec", some_slow(FREE, set()))
def test_the_setting_is_the_best_of_its_neighbours(dense, spec):
    values, specified = equal_cost.settings(dense, spec)
    cost = equal_cost.costs(dense, specified)
    ends = cost(values[0]), cost(values[-1])
    target = 0.4 * ends[0] + 0.6 * ends[1]
    found = equal_cost.find(dense, spec, target, NOWHERE)
    setting = reduction.resolve(found.spec)[2][
        reduction.reducer_class(found.spec.split(",")[0]).knob.field
    ]
    place = list(values).index(setting)
    assert found.gmacs == cost(setting)
    around = range(max(0, place - 2), min(len(values), place + 3))
    steps = [cost(values[i]) for i in around]
    assert min(abs(c - target) for c in steps) == abs(found.gmacs - target)
    assert rise_on_the_whole(steps), "a knob's values are in the order of their cost"


# But for MCTF, whose own map costs in a network of 12 channels what merging a few tokens saves.
@pytest.mark.slow
@pytest.mark.parametrize("spec", [spec for spec in FREE if spec != "mctf"])
def test_a_knob_goes_from_the_cheapest_to_the_dearest(dense, spec):
    values, specified = equal_cost.settings(dense, spec)
    cost = equal_cost.costs(dense, specified)
    some = [*values[:: max(1, len(values) // 12)], values[-1]]
    costs = [cost(value) for value in some]
    assert rise_on_the_whole(costs)
    assert costs[0] < costs[-1]


@pytest.mark.slow
def test_diffrate_takes_the_published_rates_of_the_network():
    model = abstract_model("deit_tiny_patch16_224", "none")
    values, _ = equal_cost.settings(model, "diffrate")
    assert values == tuple(f"diffrate_t_{cost}g" for cost in ("0.6", "0.7", "0.8", "0.9", "1.0"))
    found = equal_cost.find(model, "diffrate", 0.8, NOWHERE)
    assert found.spec == "diffrate,rates=diffrate_t_0.8g"
    assert found.reached


def test_diffrate_has_no_rates_for_a_network_that_nobody_published_any_for(dense):
    with pytest.raises(UserError, match="diffrate has no values of rates for this network"):
        equal_cost.find(dense, "diffrate", 0.8, NOWHERE)


def test_what_cannot_be_varied_is_named(dense):
    for spec, message in {
        "sit": "sit has nothing that could be varied",
        "tome,r=3": "tome: leave r out, --at_gmacs finds it",
        "tomee": "unknown reduction",
    }.items():
        with pytest.raises(UserError, match=message):
            equal_cost.find(dense, spec, 0.001, NOWHERE)


@pytest.fixture
def by_rate(monkeypatch):
    """Networks whose cost is their keep rate, but for half of it that nothing takes away."""
    monkeypatch.setattr(
        equal_cost.flops, "gmacs", lambda model: 0.5 + model.reducer.fields.keep_rate / 2
    )


def test_what_was_found_is_kept(dense, by_rate, tmp_path, monkeypatch):
    found = equal_cost.find(dense, "shift,locations=1", 0.8, Records(tmp_path))
    assert found == equal_cost.Found("shift,locations=1,keep_rate=0.6", 0.8, 0.8)
    assert str(found) == "0.8 GMACs: shift,locations=1,keep_rate=0.6 has 0.8"
    monkeypatch.setattr(equal_cost.flops, "gmacs", None)  # nothing is counted again
    assert equal_cost.find(dense, "shift,locations=1", 0.8, Records(tmp_path)) == found
    with pytest.raises(TypeError):
        equal_cost.find(dense, "shift,locations=1", 0.9, Records(tmp_path))


def test_a_target_out_of_reach_is_said_with_the_nearest(dense, by_rate):
    found = equal_cost.find(dense, "shift", 0.3, NOWHERE)
    assert not found.reached
    assert str(found) == (
        "0.3 GMACs: shift cannot reach it here, its nearest is shift,keep_rate=0.001 (0.5005)"
    )
    assert equal_cost.Found("tome,r=8", 0.8399, 0.8).reached
    assert not equal_cost.Found("tome,r=8", 0.8401, 0.8).reached


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "nan", "inf", "0.8,0.8", "0.8;1"])
def test_targets_that_are_none(text):
    with pytest.raises(UserError, match="give numbers above 0 with commas"):
        equal_cost.parse_targets(text)
    assert equal_cost.parse_targets("0.8,1") == (0.8, 1.0)


def test_all_that_need_no_training_are_there():
    methods = equal_cost.training_free()
    assert {"tome", "diffrate", "evo", "dpcknn,equal_weight=true"} <= set(methods)
    assert not {"none", "dynamicvit", "dpcknn", "sit"} & set(methods)
