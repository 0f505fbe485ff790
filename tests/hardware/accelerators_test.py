"""What is known of accelerators, and the share of their peak that a training reaches."""

import pytest

from evovit_jax.hardware import accelerators


def test_the_share_of_the_peak():
    # 4.6 GMACs at 2,000 images a second on each of eight TPU v5e (197e12 operations a second).
    given = {"devices": 8, "device_kind": "TPU v5 lite", "dtype": "bfloat16"}
    found = accelerators.share_of_peak(4.6, 16_000, **given)
    assert found == pytest.approx(3 * 2 * 4.6e9 * 2000 / 197e12)
    assert accelerators.share_of_peak(4.6, 1.0, **given | {"device_kind": "cpu"}) is None


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("TPU v5 lite", "float32", 197e12),
        ("TPU v5", "bfloat16", 459e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v6 lite", "bfloat16", 918e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 156e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("cpu", "float32", None),
    ],
)
def test_peaks(kind, dtype, peak):
    assert accelerators.peak(kind, dtype) == peak


def test_memory_sizes():
    names = accelerators.with_memory(90)
    assert names[0] == "TPU v5p"
    assert "A100 80GB" not in names
