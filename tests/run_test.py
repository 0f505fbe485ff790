"""What a run is made of."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

import evovit_jax
from evovit_jax.convert import load_weights
from evovit_jax.errors import UserError
from evovit_jax.run import Run
from evovit_jax.state import Skeleton


def make_run(**fields):
    return Run(tiny_config(**fields), jax.devices()[:1])


def test_a_config_is_filled_in_and_not_changed():
    config = tiny_config()
    run = Run(config, jax.devices()[:1])
    assert config.model.num_classes is None
    assert run.config.model.num_classes == 10
    assert run.like.params["head/kernel"].shape == (16, 10)


def test_intervals():
    run = make_run(total_steps=10, checkpoint_steps=None, eval_epochs=1.0, eval_steps=None)
    # 64 examples in batches of 16.
    assert (run.total, run.every) == (10, {"checkpoint": 10, "eval": 4, "log": 1})


def test_a_training_without_a_length():
    with pytest.raises(UserError, match="set total_steps, _epochs or _examples"):
        make_run(total_steps=None)


def test_the_seed_is_of_the_initial_values():
    states = [make_run(seed=seed).fresh_state() for seed in (0, 0, 1)]
    kernels = [np.asarray(state.params["blocks/0/attn/qkv/kernel"]) for state in states]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).all()


def test_the_fields_of_the_model_reach_it():
    run = make_run(model__mlp_ratio=2.0, model__drop_path_rate=0.3, model__dtype="bfloat16")
    model = run.skeleton.build(run.like.params, run.like.stats)
    assert (model.config.mlp_ratio, model.config.drop_path_rate) == (2.0, 0.3)
    assert run.like.params["blocks/0/mlp/fc1/kernel"].dtype == np.float32
    assert model.config.dtype == "bfloat16"


def test_a_reduction_replaces_the_models_own():
    names = [
        type(run.skeleton.build(run.like.params, run.like.stats).reducer).__name__
        for run in (
            make_run(),
            make_run(reduction="evit,keep_rate=0.5"),
            make_run(reduction="none"),
        )
    ]
    assert names[0] == "Evo"
    assert len(set(names)) == 3


def test_initial_weights_from_a_file(tmp_path):
    run = make_run()
    model = run.create_model()
    params, stats = Skeleton.variables(model)
    shifted = Skeleton(model).build({k: v + 1 for k, v in params.items()}, stats)
    path = tmp_path / "weights.safetensors"
    evovit_jax.convert.save_weights(shifted, path)
    found = make_run(init_weights=str(path)).fresh_state()
    expected = run.create_model()
    load_weights(expected, path)
    for name, value in Skeleton.variables(expected)[0].items():
        np.testing.assert_allclose(found.params[name], value, rtol=1e-6)
        np.testing.assert_array_equal(found.ema["params"][name], found.params[name])
    assert int(found.step) == 0
