"""Which kind of checkpoint is meant, by its name, by its tensors, or by the model."""

import functools

import pytest
from flax import nnx

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.weights.families import Family, families_of, find_family, register
from evovit_jax.weights.layouts import renamed_scheme

VIT = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
LEVIT = {"image_size": 32, "embed_dim": (16,), "key_dim": 4, "num_heads": (2,), "depth": (1,)}


def abstract(name, sizes, reduction=None):
    return nnx.eval_shape(lambda: evovit_jax.create_model(name, reduction, **sizes))


def test_families_are_named_in_errors():
    with pytest.raises(UserError, match=r"no family 'tim' for a LeViT; did you mean 'timm'\?"):
        find_family(abstract("levit_128s", LEVIT), "tim")
    deit3 = abstract("deit3_small_patch16_224", VIT)
    with pytest.raises(UserError, match="Google's ViT files have no place for"):
        find_family(deit3, "google").scheme(deit3)
    with pytest.raises(UserError, match="no PyTorch layout for a Linear"):
        find_family(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), None)


def test_the_first_family_whose_mark_is_there_reads_and_the_first_natural_one_writes():
    model = abstract("evo_deit_tiny_patch16_224", VIT)
    assert find_family(model, None, ["blocks.0.norm1.weight"]).name == "timm"
    assert find_family(model, None, ["x", "qks.0.qk.weight"]).name == "evo_deit"
    assert find_family(model, None, ["blocks.0.gamma_1"]).name == "deit3"
    assert find_family(model, None).name == "timm"
    official = abstract("evo_deit_tiny_patch16_224", VIT, "evo,representative_token=false")
    assert find_family(official, None).name == "evo_deit"


def test_a_model_of_ones_own_has_the_families_that_were_registered():
    class Own(nnx.Module):
        """Is known to this test only."""

    assert families_of(Own) == ()
    family = Family("own", functools.partial(renamed_scheme, renames=()))
    register(Own, family)
    register(Own, family)
    assert families_of(Own) == (family,)
    assert families_of(type("Other", (Own,), {})) == ()
    with pytest.raises(UserError, match="families of Own are known already"):
        register(Own, Family("another", family.scheme))
    with pytest.raises(UserError, match="or none is given"):
        register(Own)
