"""docs/adding_a_method.md as it stands: a reducer from outside of the package."""

import pathlib
import re
import sys
import types

import flops_formula
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import run_model

import evovit_jax
from evovit_jax import flops, reduction
from evovit_jax.errors import UserError
from evovit_jax.models import abstract_model
from evovit_jax.reduction.tokens import group_sizes

# The code of the document is for the published size.
pytestmark = pytest.mark.slow
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "adding_a_method.md"
TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 4, "num_heads": 3}


@pytest.fixture(scope="module")
def walk():
    """The names that the document's code leaves behind; its methods are registered meanwhile."""
    before, names = dict(reduction._registered), {"__name__": "walk"}
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))
    exec(compile(code, str(DOCUMENT), "exec"), names)
    yield names
    reduction._registered.clear()
    reduction._registered.update(before)


def test_the_method_of_the_walk_runs(walk):
    assert walk["logits"].shape == (1, 1000)
    kept = [int(m.max()) for m in walk["out"].token_maps]
    assert kept == [196] * 3 + [98] * 3 + [49] * 3 + [24] * 4
    assert "loudest" in reduction.list_reductions()


def test_it_keeps_the_longest_tokens_and_accounts_for_all(walk):
    del walk
    model = evovit_jax.create_model("deit_tiny_patch16_224", "loudest,keep_rate=0.5", **TINY)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    tokens = jnp.linalg.norm(jax.jit(model.embed)(images)[:, 1:], axis=-1)
    first = run_model(model, images, reduction={"locations": (0,)})[1].token_maps[0]
    for b in range(2):
        longest = set(np.argsort(-np.asarray(tokens[b]))[:8].tolist())
        assert set(np.flatnonzero(first[b, 1:] >= 0).tolist()) == longest
    source = jax.jit(model)(images)[1].token_maps[-1]
    sizes = group_sizes(source, 3)
    np.testing.assert_array_equal(sizes.sum(axis=1) + (source < 0).sum(axis=1), 17)


def test_its_multiply_adds_need_no_code_of_its_own(walk):
    del walk
    for method in ("loudest", "most_attended"):
        model = abstract_model("deit_tiny_patch16_224", f"{method},keep_rate=0.5", **TINY)
        total = flops_formula.count(model).total
        assert total / 1e9 == pytest.approx(flops.gmacs(model), rel=0.01)


def test_kept_it_is_a_method_like_the_others(walk, monkeypatch):
    """The file and the row of "To keep it"; the other steps have tests of their own."""
    module = types.ModuleType("evovit_jax.reduction.kept")
    module.Kept = type("Kept", (walk["Loudest"],), {})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(reduction.METHODS, "kept", ("kept", "Kept"))
    assert "kept" in reduction.list_reductions()
    model = evovit_jax.create_model("deit_tiny_patch16_224", "kept,keep_rate=0.5,order=1", **TINY)
    assert type(model.reducer) is module.Kept
    with pytest.raises(UserError, match="'kept': order must be a whole number, got 'x'"):
        evovit_jax.create_model("deit_tiny_patch16_224", "kept,order=x", **TINY)


def test_to_keep_it_names_every_step():
    """A new method fails the tests of a step that it has not taken: the text must name them all."""
    text = DOCUMENT.read_text().partition("## To keep it")[2].partition("\n## ")[0]
    for step in (
        "`METHODS`",
        "`UPDATE_GOLDEN=1 pytest tests/config/recipes_test.py`",
        "`card`",
        "`knob`",
        "`python -m evovit_jax.reduction --write docs/methods.md README.md`",
        "another name",
    ):
        assert step in " ".join(text.split())
    paths = re.findall(r"`((?:evovit_jax|configs|docs|tests)/[^`]+)`", text)
    assert {"evovit_jax/reduction/NAME.py", "configs/deit_s_NAME.py"} <= {*paths}
    for path in paths:
        assert (DOCUMENT.parents[1] / path.replace("NAME", "topk")).is_file(), path


def test_bad_settings_and_taken_names_are_one_clear_line(walk):
    with pytest.raises(UserError, match="order must be 1 or 2"):
        evovit_jax.create_model("deit_tiny_patch16_224", "loudest,order=3", **TINY)
    with pytest.raises(UserError, match="no field 'ordr'; did you mean 'order'"):
        evovit_jax.create_model("deit_tiny_patch16_224", "loudest,ordr=1", **TINY)
    with pytest.raises(UserError, match="exists already"):
        reduction.register("evit", walk["Loudest"])
    with pytest.raises(UserError, match="exists already"):
        reduction.register("loudest", walk["MostAttended"])
