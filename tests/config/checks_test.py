"""Values that no run can use are refused by the field's name."""

import pytest

from evovit_jax import config as config_lib
from evovit_jax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size=0 must be at least 1"),
        ("accumulate", 3, "does not divide into accumulate=3"),
        (
            "grad_reduce_dtype",
            "float16",
            "must be one of float32, bfloat16",
        ),
        ("ema.decay", 1.0, "ema.decay=1.0 must be in [0, 1)"),
        ("optim.learning_rate", -1.0, "optim.learning_rate=-1.0 must be at least 0"),
        ("optim.eps", float("nan"), "optim.eps=nan must be at least 0"),
        ("data_limit_unreadable", -1, "data_limit_unreadable=-1 must be at least 0"),
        ("augment.repeats", 0, "augment.repeats=0 must be at least 1"),
        ("loss.label_smoothing", 1.5, "loss.label_smoothing=1.5 must be in [0, 1]"),
        ("eval_transform.crop_fraction", 0.0, "crop_fraction=0.0 must be in (0, 1]"),
        ("distill.tau", float("inf"), "distill.tau=inf must be above 0"),
        ("model.patch_size", 0, "model.patch_size=0 must be at least 1"),
        ("mean", ("a", "b", "c"), "mean=('a', 'b', 'c'): each must be in [0, 1]"),
        ("mean", (0.5, 0.5), "mean=(0.5, 0.5) must have 3 numbers"),
        ("std", (0.5, 0.0, 0.5), "std=(0.5, 0.0, 0.5): each must be above 0"),
        ("profile_steps", "5:1", "profile_steps='5:1': say FIRST:END"),
        ("augment.randaugment", "rand-x9", "augment.randaugment='rand-x9': write it as"),
        ("augment.crop", "bogus", "augment.crop='bogus'"),
        ("eval_transform.interpolation", "cubist", "cubist"),
        ("augment.scale", (-0.5, 1.0), "augment.scale=(-0.5, 1.0): each must be above 0"),
    ],
)
def test_values_that_no_run_can_use(field, value, message):
    config = config_lib.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        config_lib.check(config)
    assert message in str(error.value)
