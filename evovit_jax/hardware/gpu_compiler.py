"""NVIDIA's side of XLA, for GPUs that are not here.

JAX's CUDA plugin comes from the package index (extra `gpu-compiler`) and compiles ahead of time for
a GPU that is described to it. It says nothing of time: what a program must at least multiply and
move, by the data sheets, stands for that (`hardware/gpu_estimates.py`).
"""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Iterator
from types import MappingProxyType

import jax

from evovit_jax.errors import UserError
from evovit_jax.hardware import accelerators, gpu_estimates
from evovit_jax.hardware.accelerators import Accelerator
from evovit_jax.hardware.target import Estimate, Target

# The plugin, and what it fuses attention with.
PLUGIN, CUDNN = "jax-cuda13-plugin", "nvidia-cudnn-cu13"
_SIZES = ("1x1", "1x2", "1x4", "1x8", "2x8", "4x8", "8x8", "16x8", "32x8")


@dataclasses.dataclass(frozen=True)
class Generation:
    """A kind of GPU, from the makers' data sheets.

    Attributes:
      kind: what JAX calls it.
      cores: streaming multiprocessors.
      units: of float32 in each.
      shared: bytes of shared memory of a core, and what a block may have of it.
      cache: bytes of its second cache.
      clock: gigahertz.
      memory: bytes.
      bandwidth: bytes a second of its memory.
      links: bytes a second that it sends to the others of its host.
      network: likewise to those of other hosts.
    """

    kind: str
    cores: int
    units: int
    shared: tuple[int, int]
    cache: int
    clock: float
    memory: int
    bandwidth: float
    links: float
    network: float


_HOPPER = (233_472, 232_448)
GENERATIONS = {
    "a100": Generation(
        "NVIDIA A100-SXM4-80GB", 108, 64, (167_936, 166_912), 41_943_040, 1.41,
        85_100_068_864, 2.039e12, 300e9, 25e9,
    ),
    "h100": Generation(
        "NVIDIA H100 80GB HBM3", 132, 128, _HOPPER, 52_428_800, 1.98,
        84_942_979_072, 3.352e12, 450e9, 50e9,
    ),
    "h200": Generation(
        "NVIDIA H200 141GB HBM3e", 132, 128, _HOPPER, 52_428_800, 1.98,
        151_397_597_184, 4.8e12, 450e9, 50e9,
    ),
    "b200": Generation(
        "NVIDIA B200", 148, 128, _HOPPER, 132_644_864, 1.965,
        191_514_411_008, 7.672e12, 900e9, 50e9,
    ),
}  # fmt: skip
# As XLA reads it; what is the same for all of these GPUs is written out.
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared[0]}
  shared_memory_per_block_optin: {shared[1]}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: {cache} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True)
class Hosts(Target):
    """GPUs in hosts; `size` is hosts by GPUs in each, as in "1x8"."""

    platform = "gpu"
    # There is no card to try the ways of a product on: each gets its default.
    options = MappingProxyType({"xla_gpu_autotune_level": 0})
    # Nor does it look for another way where that has no tiles for a product: cuBLAS has no tiles.
    second_try = MappingProxyType({"xla_gpu_enable_triton_gemm": False})
    columns = MappingProxyType({"fused_attention": "fused attention", "moved_mb": "MB moved"})
    parts = "parts_moved_mb"
    what = "at the data sheet's full speeds, which no program reaches"

    @property
    def kind(self) -> Generation:
        """What its GPUs are."""
        return GENERATIONS[self.generation]

    @property
    def _accelerator(self) -> Accelerator:
        found = accelerators.find(self.kind.kind)
        assert found is not None  # every GPU above is one that is known
        return found

    @property
    def links(self) -> float:
        """Bytes a second that a GPU sends to others, over the network where there are hosts."""
        return self.kind.links if self.size.startswith("1x") else self.kind.network

    def sizes(self) -> list[Target]:
        """From one GPU to 32 hosts of eight."""
        return [Hosts(self.generation, size) for size in _SIZES]

    def check_installed(self, flag: str) -> None:
        """Refuses `flag` where JAX's CUDA plugin is not installed.

        Raises:
          UserError: it is not.
        """
        try:
            self.version()
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(
                f"{flag} needs XLA for NVIDIA: pip install 'evovit_jax[gpu-compiler]' (5 GB)"
            ) from error

    def version(self) -> str:
        """The plugin and what it compiles with."""
        plugin, cudnn = map(importlib.metadata.version, (PLUGIN, CUDNN))
        return f"{PLUGIN} {plugin}, cuDNN {cudnn}, jax {jax.__version__}"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Any number of processes may compile."""
        yield

    def description(self) -> str:
        """The GPU, as XLA reads it."""
        major, minor = self._accelerator.capability
        figures = dataclasses.asdict(self.kind)
        return _DESCRIPTION.format(**figures, major=major, minor=minor)

    def devices(self) -> list[jax.Device]:
        """The GPUs, as far as compiling goes.

        Raises:
          UserError: the plugin does not start.
        """
        jax.config.update("jax_platforms", "cpu")  # nothing runs, and no GPU need be looked for
        from jax.experimental import topologies

        try:
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name="",
                target_config=self.description(),
                topology=f"1x{self.size}",  # one group that shares memory addresses
            )
        except (RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"XLA for NVIDIA does not start for {self}: {reason}") from error
        return list(found.devices)

    def estimate(self, hlo: str, operations: float, dtype: str) -> Estimate:
        """By the peak and the bandwidth of the data sheet."""
        sums = gpu_estimates.sums(hlo)
        known = self._accelerator
        peak = known.float32 if dtype == "float32" else known.bfloat16
        computing, moving = 1e3 * operations / peak, 1e3 * sums.moved / self.kind.bandwidth
        fields = {
            "estimated_share_of_peak": round(computing / (computing + moving), 3),
            "kernels": sums.kernels,
            "fused_attention": sums.fused_attention,
            "moved_mb": round(sums.moved / 2**20),
            "parts_moved_mb": {part: round(n / 2**20, 1) for part, n in sums.parts.items()},
        }
        return Estimate((max(computing, moving), computing + moving), {}, fields)
