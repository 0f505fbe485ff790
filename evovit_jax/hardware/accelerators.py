"""What is known of accelerators: how fast they multiply, and how much memory they have.

The figures are those of a JAX device (a chip; a core of TPU v2, v3 and v7x, which show two devices
a chip), dense, from the makers' data sheets and cloud.google.com/tpu/docs.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A kind of device.

    Attributes:
      name: what people call it.
      bfloat16: peak of bfloat16 matrix products, operations a second (two a multiply-add);
        0 where the unit does not know bfloat16.
      float32: likewise as XLA multiplies float32 by default: TPUs in one bfloat16 pass, NVIDIA's
        from Ampere on in TF32.
      hbm_gib: device memory, GiB.
      capability: an NVIDIA GPU's compute capability, (9, 0) for an H100; () for a TPU.
    """

    name: str
    bfloat16: float
    float32: float
    hbm_gib: float
    capability: tuple[int, ...] = ()


def _tpu(name: str, teraflops: float, hbm_gib: float) -> Accelerator:
    return Accelerator(name, teraflops * 1e12, teraflops * 1e12, hbm_gib)


def _gpu(
    name: str, bfloat16: float, float32: float, hbm_gib: float, *capability: int
) -> Accelerator:
    return Accelerator(name, bfloat16 * 1e12, float32 * 1e12, hbm_gib, capability)


# How `jax.Device.device_kind` begins -> what it is; of several the longest counts.
KNOWN = {
    "TPU v2": _tpu("TPU v2", 22.5, 8),
    "TPU v3": _tpu("TPU v3", 61.5, 16),
    "TPU v4": _tpu("TPU v4", 275, 32),
    "TPU v4 lite": _tpu("TPU v4i", 138, 8),
    "TPU v5 lite": _tpu("TPU v5e", 197, 16),
    "TPU v5e": _tpu("TPU v5e", 197, 16),
    "TPU v5": _tpu("TPU v5p", 459, 95),
    "TPU v6 lite": _tpu("TPU v6e", 918, 32),
    "TPU v6e": _tpu("TPU v6e", 918, 32),
    "TPU7x": _tpu("TPU7x", 1153.5, 96),
    "Tesla T4": _gpu("T4", 0, 8.1, 16, 7, 5),
    "Tesla V100": _gpu("V100", 0, 15.7, 16, 7, 0),
    "NVIDIA L4": _gpu("L4", 121, 60, 24, 8, 9),
    "NVIDIA L40S": _gpu("L40S", 362, 183, 48, 8, 9),
    "NVIDIA A10G": _gpu("A10G", 70, 35, 24, 8, 6),
    "NVIDIA A100": _gpu("A100 80GB", 312, 156, 80, 8, 0),
    "NVIDIA A100-SXM4-40GB": _gpu("A100 40GB", 312, 156, 40, 8, 0),
    "NVIDIA A100-PCIE-40GB": _gpu("A100 40GB", 312, 156, 40, 8, 0),
    "NVIDIA H100 PCIe": _gpu("H100 PCIe", 756, 378, 80, 9, 0),
    "NVIDIA H100": _gpu("H100 SXM", 989, 495, 80, 9, 0),
    "NVIDIA H200": _gpu("H200", 989, 495, 141, 9, 0),
    "NVIDIA B200": _gpu("B200", 2250, 1125, 180, 10, 0),
    "NVIDIA GeForce RTX 3090": _gpu("RTX 3090", 71, 35.6, 24, 8, 6),
    "NVIDIA GeForce RTX 4090": _gpu("RTX 4090", 165, 82.6, 24, 8, 9),
    "NVIDIA RTX A6000": _gpu("RTX A6000", 155, 77.4, 48, 8, 6),
}


def find(device_kind: str) -> Accelerator | None:
    """The accelerator that JAX calls `device_kind`; None for a CPU or an unknown one."""
    matching = [prefix for prefix in KNOWN if device_kind.startswith(prefix)]
    return KNOWN[max(matching, key=len)] if matching else None


def peak(device_kind: str, dtype: str) -> float | None:
    """Peak operations a second of a device for matrix products in `dtype`; None if not known."""
    found = find(device_kind)
    return (getattr(found, dtype, 0) or None) if found else None


def share_of_peak(
    gmacs: float, images_per_second: float, *, devices: int, device_kind: str, dtype: str
) -> float | None:
    """The share of the peak that a training reaches, 0 to 1: model FLOPs utilisation (MFU).

    A training step is counted as three forward passes (PaLM, appendix B): what remat computes again
    does not count.

    Args:
      gmacs: of one image's forward pass, 1e9 multiply-adds.
      images_per_second: of all devices together.
      devices: how many there are.
      device_kind: `jax.Device.device_kind`.
      dtype: of the matrix products, "bfloat16" or "float32".

    Returns:
      None for a device that is not known.
    """
    best = peak(device_kind, dtype)
    if best is None:
        return None
    return 3 * 2 * gmacs * 1e9 * images_per_second / (best * devices)


def with_memory(gib: float) -> list[str]:
    """Names of the known accelerators that have at least `gib` GiB, the smallest first."""
    found = {known.name: known.hbm_gib for known in KNOWN.values() if known.hbm_gib >= gib}
    return sorted(found, key=lambda name: (found[name], name))
