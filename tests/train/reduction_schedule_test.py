"""The reduction's settings over time."""

import math

import pytest

from evovit_jax import config as config_lib
from evovit_jax.errors import UserError
from evovit_jax.train import reduction_schedule


def plan(reduction, total=90, model="deit_small_patch16_224", **fields):
    c = config_lib.get_config()
    c.batch_size, c.reduction, c.model.name = 10, reduction, model
    c.update(**fields)
    return reduction_schedule.plan(c, total=total, examples=100)


def test_dense_has_one_program():
    assert plan("") == (reduction_schedule.Phase(0, ()),)


@pytest.mark.parametrize(
    ("reduction", "model"),
    [("evo", "deit_small_patch16_224"), ("", "evo_deit_small_patch16_224")],
)
def test_evo_selects_in_every_block_for_two_thirds(reduction, model):
    found = plan(reduction, model=model)
    assert [(p.start, dict(p.overrides)) for p in found] == [
        (0, {"selection": "layer"}),
        (60, {"selection": "stage"}),
    ]


def test_the_switch_is_configurable():
    assert [p.start for p in plan("evo", layer_to_stage_epochs=2)] == [0, 20]
    found = plan("evo", layer_to_stage_steps=0)
    assert [(p.start, dict(p.overrides)) for p in found] == [(0, {"selection": "stage"})]


def test_evo_levit_learns_its_trade_off_after_the_switch():
    found = plan("", model="evo_levit_256")
    assert [(p.start, dict(p.overrides)) for p in found] == [
        (0, {"selection": "layer", "tradeoff": "fixed"}),
        (60, {"selection": "stage", "tradeoff": "learned"}),
    ]
    fixed = plan("evo,tradeoff=fixed", model="evo_levit_256")
    assert [dict(p.overrides) for p in fixed] == [{"selection": "layer"}, {"selection": "stage"}]


def test_evo_in_every_block_for_good():
    assert plan("evo,selection=layer") == (reduction_schedule.Phase(0, ()),)


def test_the_keep_rate_falls_in_levels():
    found = plan(
        "evit,keep_rate=0.5",
        keep_rate_start_steps=10,
        keep_rate_warmup_steps=40,
        keep_rate_levels=4,
    )
    rates = {p.start: dict(p.overrides)["keep_rate"] for p in found}
    assert list(rates) == [0, 10, 20, 30, 40, 50]
    assert (rates[0], rates[50]) == (1.0, 0.5)
    for i, start in enumerate((10, 20, 30, 40)):
        cosine = 0.5 + 0.5 * (1 + math.cos(math.pi * (i + 0.5) / 4)) / 2
        assert rates[start] == pytest.approx(cosine, abs=1e-4)


def test_a_keep_rate_that_starts_late_and_falls_at_once():
    found = plan("evit,keep_rate=0.5", keep_rate_start_steps=10)
    assert [(p.start, dict(p.overrides)) for p in found] == [
        (0, {"keep_rate": 1.0}),
        (10, {"keep_rate": 0.5}),
    ]


def test_a_keep_rate_a_location():
    found = plan("evit,keep_rate=0.9:0.5:0.2", keep_rate_warmup_steps=20, keep_rate_levels=2)
    assert dict(found[-1].overrides)["keep_rate"] == (0.9, 0.5, 0.2)
    first = dict(found[0].overrides)["keep_rate"]
    assert len(first) == 3
    assert all(a > b for a, b in zip(first, (0.9, 0.5, 0.2), strict=True))


def test_a_schedule_of_what_the_reduction_has_not():
    with pytest.raises(UserError, match=r"layer_to_stage_\* is given, .* 'none' has none"):
        plan("", layer_to_stage_epochs=3)
    with pytest.raises(UserError, match=r"keep_rate_warmup_\* is given, .* 'none' has none"):
        plan("none", keep_rate_warmup_epochs=3)


def test_which_phase_a_step_is_in():
    found = plan("evo")
    assert [reduction_schedule.at(found, step).start for step in (0, 59, 60, 89)] == [0, 0, 60, 60]
    said = reduction_schedule.describe(found[1])
    assert said == "from step 60 on the reduction runs with selection=stage"


def test_a_keep_rate_that_cannot_fall():
    with pytest.raises(UserError, match=r"say where it ends, reduction=tome,keep_rate="):
        plan("tome", keep_rate_warmup_epochs=3)
    with pytest.raises(UserError, match=r"'sinkhorn' has weights for one keep rate"):
        plan("sinkhorn", keep_rate_warmup_epochs=3)


def test_a_keep_rate_that_is_no_number():
    with pytest.raises(UserError, match=r"keep_rate must be .*, got abc|keep_rate.*'abc'"):
        plan("evit,keep_rate=abc", keep_rate_warmup_epochs=3)
