"""What a program runs and moves on a GPU that is not here, and how long that should take."""

import importlib.metadata
import pathlib

import pytest

from evovit_jax.errors import UserError
from evovit_jax.hardware import accelerators, gpu_compiler, gpu_estimates

HOST = gpu_compiler.Hosts("h100", "1x8")
# As XLA prints a program for NVIDIA, cut down: the tables of stack frames, and an entry.
HLO = (pathlib.Path(__file__).parent / "golden" / "gpu_program.txt").read_text()
X, Y = 2 * 64 * 111, 2 * 64 * 8


def test_bytes_are_summed_by_the_part_of_the_network():
    sums = gpu_estimates.sums(HLO)
    assert sums.parts == {
        "layout copies": 2 * X,
        "MLP": X + Y,
        "attention": 2 * Y,
        "selection": 3 * Y,
    }
    assert sums.moved == 3 * X + 6 * Y
    assert (sums.kernels, sums.fused_attention) == (4, 1)


def test_a_program_takes_its_products_and_its_bytes_one_after_the_other_at_the_most():
    operations = 1e6
    multiplied = operations / 989e12
    moved = gpu_estimates.sums(HLO).moved / 3.352e12
    estimate = HOST.estimate(HLO, operations, "bfloat16")
    assert estimate.ms == pytest.approx((1e3 * max(multiplied, moved), 1e3 * (multiplied + moved)))
    assert estimate.unknown == {}
    assert set(HOST.columns) <= set(estimate.fields)
    assert HOST.parts in estimate.fields
    assert HOST.estimate(HLO, 1e12, "float32").ms[0] == pytest.approx(1e3 * 1e12 / 495e12)


@pytest.mark.parametrize("generation", gpu_compiler.GENERATIONS)
def test_its_description_says_what_the_card_is(generation):
    gpu = gpu_compiler.GENERATIONS[generation]
    text = gpu_compiler.Hosts(generation, "1x1").description()
    known = accelerators.find(gpu.kind)
    major, minor = known.capability
    assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in text
    assert f'device_description_str: "{gpu.kind}"' in text
    assert f"device_memory_size: {gpu.memory}" in text
    assert gpu.memory / 2**30 == pytest.approx(known.hbm_gib, rel=0.02)


@pytest.mark.parametrize("missing", [gpu_compiler.PLUGIN, gpu_compiler.CUDNN])
def test_a_missing_compiler_is_named_with_its_extra(monkeypatch, missing):
    def version(package):
        if package == missing:
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match=r"pip install 'evovit_jax\[gpu-compiler\]'"):
        HOST.check_installed("--target")


def test_the_compiler_is_named_with_what_has_a_part_in_it(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.0")
    HOST.check_installed("--target")
    assert HOST.version().startswith("jax-cuda13-plugin 1.0, cuDNN 1.0, jax ")
