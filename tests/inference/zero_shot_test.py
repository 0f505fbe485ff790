"""Class embeddings in place of a head: the file, the logits, and the commands that take them."""

import dataclasses
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from hostile_files import irregular, not_for_ever
from PIL import Image

from evovit_jax import evaluate, predict
from evovit_jax.errors import UserError
from evovit_jax.inference import evaluation, prediction
from evovit_jax.inference.ready_model import prepare
from evovit_jax.inference.zero_shot import read_classes

SMALL = {"image_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 3}
WIDTH = 6


@pytest.fixture
def file(tmp_path):
    """Writes class embeddings; returns the file's name."""

    def write(**arrays):
        np.savez(tmp_path / "classes.npz", **arrays)
        return str(tmp_path / "classes.npz")

    return write


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_logits_are_scaled_cosines(file):
    embeddings, features = drawn(4, WIDTH), drawn(3, WIDTH, seed=1)
    classes = read_classes(file(embeddings=3 * embeddings, logit_scale=7.0, logit_bias=[-2.0]))
    lengths = np.outer(np.linalg.norm(features, axis=1), np.linalg.norm(embeddings, axis=1))
    expected = 7 * (features @ embeddings.T) / lengths - 2
    found = classes.logits(jnp.array(features), jnp.array(classes.embeddings))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert classes.names is None
    plain = read_classes(file(embeddings=embeddings))
    assert (plain.scale, plain.bias) == (100.0, 0.0)
    with pytest.raises(UserError, match=r"embeddings have 6 values, the model's features 5;"):
        classes.logits(jnp.array(features[:, :5]), jnp.array(classes.embeddings))


BAD = {
    "must have the array embeddings.* it has names": {"names": ["a"]},
    "it has embedding_bias, embeddings": {"embeddings": drawn(2, 3), "embedding_bias": 1.0},
    r"embeddings has shape \(3,\), not \[classes, values\]": {"embeddings": drawn(3)},
    r"embeddings has shape \(0, 3\)": {"embeddings": drawn(0, 3)},
    "embeddings has NaN or Inf": {"embeddings": [[1.0, np.nan]]},
    "embeddings is of <U1, not real numbers": {"embeddings": [["a", "b"]]},
    "the embedding of class 1 is all zero": {"embeddings": [[1.0, 0.0], [0.0, 0.0]]},
    r"names is <U1 of shape \(1,\), not 2 texts": {"embeddings": drawn(2, 3), "names": ["a"]},
    r"names is int64 of shape \(2,\), not 2": {"embeddings": drawn(2, 3), "names": [1, 2]},
    "logit_scale=0 must be more than 0": {"embeddings": drawn(2, 3), "logit_scale": 0.0},
    r"logit_bias has shape \(2,\), not that": {"embeddings": drawn(2, 3), "logit_bias": [1, 2]},
}


@pytest.mark.parametrize("said", BAD)
def test_a_file_that_cannot_be_used_is_named_in_one_line(file, said):
    with pytest.raises(UserError, match=said) as caught:
        read_classes(file(**BAD[said]))
    assert "classes.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_such_file_is_refused(tmp_path, file):
    for name in (tmp_path / "none.npz", tmp_path, tmp_path / "x.pth", ""):
        with pytest.raises(UserError, match=r"there is no \.npz file of that name"):
            read_classes(str(name))
    path = file(embeddings=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="is damaged or no"):
        read_classes(path)


@pytest.fixture
def ready(tmp_path, file):
    """A network, two folders of one image, and their features as the classes' embeddings."""
    model = prepare("deit_tiny_patch16_224", num_classes=0, **SMALL)
    crops = []
    for i, name in enumerate(("ant", "bee")):
        (tmp_path / "data" / name).mkdir(parents=True)
        picture = Image.fromarray(np.uint8(np.abs(drawn(40, 40, 3, seed=i)) * 60))
        image = str(tmp_path / "data" / name / "x.png")
        picture.save(image)
        crops.append(prediction.read(model, image))
    ant, bee = np.asarray(model.look(np.stack(crops))[0])
    path = file(embeddings=np.stack([5 * bee, ant]), names=["bee", "ant"])
    return dataclasses.replace(model, classes=read_classes(path)), path, tmp_path / "data"


def test_evaluate_numbers_folders_by_the_names_of_the_classes(ready, monkeypatch, capsys):
    prepared, path, folder = ready
    given = {}

    def prepare_instead(*_, **options):
        given.update(options)
        return prepared

    monkeypatch.setattr(evaluate.model_flags, "prepare", prepare_instead)
    flags = ["--model=deit_tiny_patch16_224", f"--classes={path}", f"--data=folder:{folder}"]
    assert evaluate.main([*flags, "--json"]) == 0
    assert given["classes"] == path
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["top1"], found["examples"]) == (100.0, 2)


def test_predict_names_them(ready, monkeypatch, capsys):
    prepared, path, folder = ready
    monkeypatch.setattr(predict.model_flags, "prepare", lambda *_, **__: prepared)
    images = [str(folder / name / "x.png") for name in ("bee", "ant")]
    assert predict.main([f"--classes={path}", *images, "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out.splitlines()[-1])["predictions"]
    assert [item["classes"][0]["name"] for item in predictions] == ["bee", "ant"]
    assert all(len(item["classes"]) == 2 for item in predictions)


def test_a_network_without_classes_says_what_it_needs(ready):
    prepared, _, folder = ready
    headless = dataclasses.replace(prepared, classes=None)
    with pytest.raises(UserError, match=r"this model has no classes.* --classes=FILE\.npz"):
        evaluation.evaluate(headless, f"folder:{folder}", quiet=True)
    with pytest.raises(UserError, match="this model has no classes"):
        headless.class_names()


def test_a_bad_file_ends_before_the_network_is_made():
    with pytest.raises(UserError, match=r"classes none\.npz"):
        prepare("deit_tiny_patch16_224", "no_such_weights.pth", classes="none.npz")


@pytest.mark.parametrize("kind", ["pipe", "zero", "huge"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "classes.npz"
    os.replace(irregular(tmp_path, kind), path)
    with not_for_ever(), pytest.raises(UserError, match=r"no \.npz file|cannot be read"):
        read_classes(str(path))
