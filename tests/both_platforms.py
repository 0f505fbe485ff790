"""A function as a TPU computes it beside the same as everything else does."""

import jax
import numpy as np

from evovit_jax.hardware.platforms import compiling_for


def on_both(function, *arrays):
    """`function` as a TPU computes it, and as everything else does."""
    answers = []
    for platform in ("tpu", "cpu"):
        with compiling_for(platform):
            answers.append(jax.jit(function)(*arrays))
    return answers


def assert_close(answers, **tolerance):
    ours, theirs = answers
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(*map(jax.tree.leaves, answers), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, **tolerance)
