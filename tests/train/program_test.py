"""What a run is made of."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import fuse
from evovit_jax.models.variables import Skeleton
from evovit_jax.train.program import build
from evovit_jax.weights import load_weights


def make_run(**fields):
    return build(tiny_config(**fields), jax.devices()[:1])


def test_a_config_is_filled_in_and_not_changed():
    config = tiny_config()
    run = build(config, jax.devices()[:1])
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
    evovit_jax.weights.save_weights(shifted, path)
    found = make_run(init_weights=str(path)).fresh_state()
    expected = run.create_model()
    load_weights(expected, path)
    for name, value in Skeleton.variables(expected)[0].items():
        np.testing.assert_allclose(found.params[name], value, rtol=1e-6)
        np.testing.assert_array_equal(found.ema["params"][name], found.params[name])
    assert int(found.step) == 0


def test_weights_that_make_another_network_are_refused(tmp_path, capsys):
    run = make_run(reduction="evo,representative_token=false")
    path = tmp_path / "export"
    evovit_jax.weights.save_weights(run.create_model(), path)
    with pytest.raises(UserError, match=r"export was trained with representative_token=false; add"):
        make_run(init_weights=str(path)).fresh_state()
    make_run(reduction="evo,representative_token=false", init_weights=str(path)).fresh_state()


def test_what_loading_adapts_is_said(tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    evovit_jax.weights.save_weights(make_run(model__num_classes=12).create_model(), path)
    make_run(init_weights=str(path)).fresh_state()
    assert f"{path}: the checkpoint has 12 classes, the model 10" in capsys.readouterr().out


def test_folded_batch_norm_is_no_start(tmp_path):
    fields = {"recipe": "levit_digits.py", "model__embed_dim": (16, 16, 16)}
    fields |= {"model__num_heads": (2, 2, 2), "model__depth": (1, 1, 1), "model__image_size": 32}
    fields |= {"model__patch_size": None}
    run = make_run(**fields)
    path = tmp_path / "folded"
    evovit_jax.weights.save_weights(fuse(run.create_model()), path)
    with pytest.raises(UserError, match="has batch norms folded into the layers"):
        make_run(**fields, init_weights=str(path)).fresh_state()


def test_what_the_first_values_weigh_in_the_average():
    assert make_run(
        ema__decay=0.9, ema__warmup=False, total_steps=4
    ).stale_average() == pytest.approx(0.9**4)
    assert make_run(ema__decay=0.9, ema__warmup=True).stale_average() == 0
    assert make_run(ema__decay=0.0).stale_average() == 0
