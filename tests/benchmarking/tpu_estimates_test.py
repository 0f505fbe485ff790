"""Estimates for a TPU that is not here: what needs no compiler of its own."""

import jax
import pytest
from tiny import some_slow

from evovit_jax.benchmarking import tpu_estimates

FOUND = {
    "estimate_of": "libtpu 0.0, jax 0.10",
    "rows": [
        {
            "target": "v5e",
            "model": "m",
            "reduction": "evo",
            "dtype": "bfloat16",
            "mode": "inference",
            "batch_size": 64,
            "estimated_mcycles": 6.5,
            "estimated_mcycles_low": 6.1,
            "estimated_ms": 4.3,
            "estimated_share_of_peak": 0.4,
            "gflop": 390.0,
            "temporary_mb": 0,
            "kernels": 150,
            "parts_mcycles": {"attention": 3.0, "MLP": 3.5},
            "without_estimate": {"sort": 2},
        }
    ],
}


def test_the_table_says_that_it_measures_nothing_and_what_it_leaves_out():
    table = tpu_estimates.table(FOUND)
    assert table.startswith("ESTIMATES of the compiler (libtpu 0.0, jax 0.10), not measurements")
    assert "images/s" not in table
    header, row = (line.strip("| ").split(" | ") for line in table.splitlines()[2:5:2])
    cells = dict(zip(header, row, strict=True))
    assert cells["attention"] == "3.0"
    assert cells["selection"] == "0"
    assert table.endswith("NOT COUNTED in m evo at 64: 2 sort")


@pytest.mark.slow
@pytest.mark.parametrize("mode", some_slow(["inference", "train"], {"inference"}))
def test_a_program_is_compiled_from_shapes_alone(mode):
    """For this machine's CPU, whose compiler estimates nothing: the way is the same."""
    program = tpu_estimates.compile_for(
        jax.devices()[0],
        "deit_tiny_patch16_224",
        "evo",
        batch_size=2,
        mode=mode,
        image_size=32,
        chunk=1,
    )
    passes = 3 if mode == "train" else 1
    assert program.operations > 2 * passes * 2 * 12 * 4 * 12 * 192**2
    assert program.compiled.memory_analysis().temp_size_in_bytes > 0
