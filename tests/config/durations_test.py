"""Steps, epochs, examples."""

import pytest

from evovit_jax import config as config_lib
from evovit_jax.config import durations
from evovit_jax.errors import UserError


@pytest.fixture
def config():
    c = config_lib.get_config()
    c.batch_size = 30
    for name in durations.NAMES:
        for unit in durations.UNITS:
            c[f"{name}_{unit}"] = None
    return c


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [("steps", 7, 7), ("epochs", 2, 7), ("epochs", 0.3, 1), ("examples", 91, 4), ("steps", 0, 0)],
)
def test_units(config, unit, value, expected):
    config[f"total_{unit}"] = value
    assert durations.steps(config, "total", examples=100) == expected


def test_nothing_given_is_none(config):
    assert durations.steps(config, "warmup", examples=100) is None


def test_two_given_is_an_error(config):
    config.total_steps, config.total_epochs = 1, 1
    with pytest.raises(UserError, match="total_steps and total_epochs are both given"):
        durations.steps(config, "total", examples=100)


def test_negative_is_an_error(config):
    config.warmup_epochs = -1
    with pytest.raises(UserError, match=r"warmup_epochs=-1\.0 is negative"):
        durations.steps(config, "warmup", examples=100)


def test_a_given_one_replaces_its_siblings(config):
    config.total_epochs, config.total_steps, config.warmup_epochs = 300, 10, 5
    durations.settle(config, ["total_steps", "optim.learning_rate"])
    assert (config.total_steps, config.total_epochs, config.warmup_epochs) == (10, None, 5)


def test_every_duration_is_a_field():
    c = config_lib.get_config()
    fields = {f"{name}_{unit}" for name in durations.NAMES for unit in durations.UNITS}
    # profile_steps is a range of steps, FIRST:LAST, not a duration.
    assert fields == {f for f in c if f.endswith(durations.UNITS)} - {"profile_steps"}


def test_no_end_is_an_error(config):
    config.warmup_epochs = float("inf")
    with pytest.raises(UserError, match=r"warmup_epochs=inf is not a finite number"):
        durations.steps(config, "warmup", examples=100)


@pytest.mark.parametrize("unit", durations.UNITS)
@pytest.mark.parametrize("value", [1e308, 10**20, float("inf"), float("nan")])
def test_more_than_can_be_counted_is_an_error(config, unit, value):
    with config.unlocked(), config.ignore_type():
        config[f"eval_{unit}"] = value
    with pytest.raises(UserError, match=rf"eval_{unit}=.* is (more than|not a finite)"):
        durations.steps(config, "eval", examples=100)


@pytest.mark.parametrize(("spec", "steps"), [("", []), ("100:103", [100, 101, 102]), ("0:1", [0])])
def test_the_steps_of_a_profile(spec, steps):
    assert list(durations.profile_steps(spec)) == steps


@pytest.mark.parametrize("spec", ["100", "110:100", "5:5", "a:b", "1:2:3", "-1:3", "1:" + "9" * 30])
def test_what_is_no_range_of_steps(spec):
    with pytest.raises(UserError, match=rf"profile_steps='{spec}': say FIRST:END"):
        durations.profile_steps(spec)
