"""An image is the same pixels and the same logits in every command, to the last bit.

The training's evaluation, `evaluate`, `compare`, `predict` and `visualize`.
"""

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import some_slow, tiny_config

from evovit_jax.inference import evaluation, prediction, scoring, token_history, visualization
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models import EvalTransform
from evovit_jax.parallel import sharding
from evovit_jax.train.program import build, shardings_of

COUNT = 8
LEVIT = {
    "model__embed_dim": (16, 16, 16),
    "model__num_heads": (2, 2, 2),
    "model__depth": (1, 1, 1),
    "model__image_size": 32,
    "model__patch_size": None,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of several shapes, one of them grey."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["file,label"]
    for i in range(COUNT):
        small = rng.integers(0, 256, (6, 8, 3) if i else (6, 8), dtype=np.uint8)
        Image.fromarray(small).resize((40 + 7 * i, 37)).save(root / f"{i}.jpg")
        lines.append(f"{i}.jpg,{i % 3}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module", params=some_slow(["vit", "levit"], {"vit"}))
def run(request, folder):
    """A training of the photographs."""
    recipe = {"vit": ("digits_evo.py", {}), "levit": ("levit_digits.py", LEVIT)}[request.param]
    config = tiny_config(recipe[0], **recipe[1], eval_batch_size=COUNT, ema__decay=0.0)
    config.data = config.eval_data = f"folder:{folder}"
    config.model.num_classes = 3
    return build(config, jax.devices()[:1])


@pytest.fixture(scope="module")
def state(run):
    """Values that no batch norm leaves as they are."""
    state = run.fresh_state()
    rng = np.random.default_rng(1)
    noisy = {
        name: np.asarray(value) * rng.uniform(0.5, 1.5, value.shape).astype(value.dtype)
        for name, value in state.stats.items()
    }
    return state.replace(stats=jax.device_put(noisy, shardings_of(run.like.stats)))


@pytest.fixture(scope="module")
def model(run, state):
    """The trained model as the commands have it."""
    made, fields = run.skeleton.build(state.params, state.stats), run.config.eval_transform
    size = made.config.image_size
    transform = EvalTransform(
        size,
        fields.resize or int(size / fields.crop_fraction),
        fields.interpolation,
        tuple(run.config.mean),
        tuple(run.config.std),
    )
    return ReadyModel(run.config.model.name, "none", made, transform)


@pytest.fixture(scope="module")
def pixels(model, folder):
    """What `predict` sees."""
    return np.stack([prediction.read(model, str(folder / f"{i}.jpg")) for i in range(COUNT)])


def test_pixels_are_the_same_everywhere(run, model, folder, pixels):
    config = evaluation.data_config(model, f"folder:{folder}", batch_size=COUNT)
    with evaluation.open_batches(model, config) as batches:
        np.testing.assert_array_equal(next(iter(batches))["image"], pixels)
    np.testing.assert_array_equal(next(iter(run.data.eval_batches))["image"], pixels)
    files = [str(folder / f"{i}.jpg") for i in range(COUNT)]
    for i, (_, picture) in enumerate(visualization.pictures_of_files(files)):
        np.testing.assert_array_equal(model.crop(picture), pixels[i])
    for i, (_, picture) in enumerate(visualization.pictures_of_data(f"folder:{folder}", COUNT)):
        np.testing.assert_array_equal(model.crop(picture), pixels[i])


def test_logits_are_the_same_everywhere(
    without_cache, run, state, model, folder, pixels, monkeypatch
):
    looked = np.asarray(model.look(pixels)[0])  # predict
    observe = token_history.observer(model)  # visualize
    np.testing.assert_allclose(observe(pixels[0]).logits, looked[0], rtol=1e-5, atol=1e-5)
    # Logits in the place of hits show what the evaluations see; one batch is all that there is.
    monkeypatch.setattr(scoring, "score", lambda logits, _: {"logits": logits})
    monkeypatch.setattr(scoring, "new_sums", lambda: {"logits": np.zeros_like(looked)})
    seen = []

    def means(sums):
        seen.append(np.asarray(sums["logits"]))
        return dict.fromkeys(("top1", "top5", "loss"), 0.0)

    monkeypatch.setattr(scoring, "means", means)
    run.evaluate(state)
    config = evaluation.data_config(model, f"folder:{folder}", batch_size=COUNT)
    step = evaluation.compiled_step(model, config, run.mesh)
    monkeypatch.setattr(scoring, "outcomes", lambda logits, _: {"logits": logits})
    outcomes = evaluation.compiled_outcomes(model, config, run.mesh)  # compare
    with evaluation.open_batches(model, config) as batches:
        scoring.evaluate(step, batches, run.mesh)
        batch = sharding.put_batch(run.mesh, next(iter(batches)))
    seen.append(np.asarray(outcomes(batch)["logits"]))
    assert len(seen) == 3
    for logits in seen:
        np.testing.assert_array_equal(logits, looked)
    assert len(np.unique(looked)) > COUNT
