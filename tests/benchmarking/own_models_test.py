"""What the benchmark times of our own models: names, cost, and a training step that trains."""

import jax
import numpy as np
import pytest

import evovit_jax
from evovit_jax import flops
from evovit_jax.benchmarking import own_models
from evovit_jax.models import abstract_model, model_entry


def test_models_without_a_reduction_have_their_own():
    assert own_models.parse_models(
        "evo_deit_tiny_patch16_224; deit_tiny_patch16_224 + tome,r=8"
    ) == [
        ("evo_deit_tiny_patch16_224", "evo"),
        ("deit_tiny_patch16_224", "tome,r=8"),
    ]


def test_an_encoder_is_trained_with_a_head():
    name = "vit_small_patch14_dinov2.lvd142m"
    model = abstract_model(name, "none", image_size=28)
    config = own_models.training_config(model, name, "none", batch_size=2)
    assert (model.config.num_classes, config.model.num_classes) == (0, 1000)


SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2, "image_size": 32}
PYRAMID = {
    "depth": (1, 1, 1),
    "embed_dim": (16, 16, 16),
    "num_heads": (2, 2, 2),
    "image_size": 64,
}


def smoke(name):
    return model_entry(name).model.smoke


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reduction", "fields"),
    [
        ("deit_tiny_patch16_224", "none", SMALL),
        ("evo_deit_tiny_patch16_224", "evo,first_block=1", SMALL),
        ("levit_128s", "none", PYRAMID),
        ("pvt_v2_b0", "none", smoke("pvt_v2_b0")),
        ("pit_ti_224", "evo", smoke("pit_ti_224")),
        ("cvt_13", "none", smoke("cvt_13")),
        ("swin_tiny_patch4_window7_224", "none", smoke("swin_tiny_patch4_window7_224")),
    ],
    ids=["deit", "evo", "levit", "pvt", "pit", "cvt", "swin"],
)
def test_a_training_step_trains(name, reduction, fields):
    model = abstract_model(name, reduction, **fields)
    config = own_models.training_config(model, name, reduction, batch_size=2)
    config.model.update(fields)
    training = own_models.Training(config)
    before = jax.device_get(training.state.params)
    training()
    training()
    after = jax.device_get(training.state)
    assert int(after.step) == 2
    assert int(after.meter["bad"]) == -1
    moved = [key for key, value in before.items() if not np.array_equal(value, after.params[key])]
    for layer in ("patch_embed/", "head/"):  # the gradient came all the way
        assert any(layer in key for key in moved), layer
    assert training.cost.operations > 2 * 2.5 * 2e9 * flops.gmacs(model)


def test_a_row_of_training_has_what_was_asked_for(monkeypatch):
    configs = []

    class NoTraining:
        cost = own_models.Cost(operations=7, memory_mb=8.0, compile_seconds=9.0)

        def __init__(self, config):
            configs.append(config)

        def __call__(self):
            pass

    monkeypatch.setattr(own_models, "Training", NoTraining)
    fields = {"dtype": "bfloat16", "image_size": 32, "remat": "full"}
    case = own_models.make("deit_tiny_patch16_224", "none", batch_size=3, mode="train", **fields)
    (config,) = configs
    assert (config.model.dtype, config.model.remat, config.batch_size) == ("bfloat16", "full", 3)
    assert (config.model.image_size, config.model.num_classes) == (32, 1000)
    assert case.row == {
        "framework": "evovit_jax",
        "model": "deit_tiny_patch16_224",
        "reduction": "none",
        "dtype": "bfloat16",
        "batch_size": 3,
        "mode": "train",
        "image_size": 32,
        "gmacs": flops.gmacs(abstract_model("deit_tiny_patch16_224", image_size=32)),
        "peak_memory_mb": 8.0,
        "compile_seconds": 9.0,
    }
    assert case.operations == 7
    assert (3 * 5, 192, 768) in case.shapes  # of a feed-forward: 4 patches and a class token


def test_a_row_of_inference_knows_its_cost():
    model = evovit_jax.create_model(
        "deit_tiny_patch16_224", "none", image_size=32, depth=1, embed_dim=12, num_heads=2
    )
    call, cost = own_models._inference(model, 4, 2)
    assert call().shape == (4, 1000)
    # Of the only block four tokens of five are keys and values alone.
    not_computed = 4 * (2 * 12**2 + 2 * 5 * 12 + 8 * 12**2)
    assert cost.operations == pytest.approx(2 * 4 * (1e9 * flops.gmacs(model) - not_computed))
    assert cost.memory_mb > 0
