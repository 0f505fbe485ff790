"""How well a run uses its machine: GMACs, share of the peak, and how long it waits for data."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from evovit_jax import flops, phases
from evovit_jax.hardware import accelerators
from evovit_jax.run import Run

# Metrics that differ between two runs of the same training.
MEASURED = ("images_per_second", "share_of_peak", "input_wait_share")


class Cost:
    """What a step of a run computes, by the phase that it is in."""

    def __init__(self, run: Run):
        self._run = run
        device = run.mesh.devices.flat[0]
        self._share = functools.partial(
            accelerators.share_of_peak,
            devices=run.mesh.size,
            device_kind=device.device_kind,
            dtype=run.config.model.dtype,
        )
        self._gmacs = functools.cache(self._count)

    def gmacs(self, step: int) -> float:
        """1e9 multiply-adds of one image's forward pass in step number `step`."""
        return self._gmacs(phases.at(self._run.phases, step).overrides)

    def _count(self, overrides: tuple[tuple[str, Any], ...]) -> float:
        size = self._run.config.model.image_size
        graphdef, state = nnx.split(nnx.eval_shape(self._run.create_model))
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

        def logits(state: Any, images: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state)(images, reduction=dict(overrides))[0]

        return flops.macs_of(logits, state, images) / 1e9

    def metrics(self, step: int, images_per_second: float | None) -> dict[str, float]:
        """`gmacs` of step number `step`, and `share_of_peak` (0 to 1) on a known accelerator."""
        found = {"gmacs": self.gmacs(step)}
        if images_per_second is not None:
            share = self._share(found["gmacs"], images_per_second)
            if share is not None:
                found["share_of_peak"] = share
        return found


class InputWait:
    """The share of the time that the host spends waiting for batches.

    The host runs ahead of the device, so that waiting costs speed only where the share nears 1.
    """

    def __init__(self):
        self._waited = 0.0
        self._since = time.perf_counter()

    def take(self, batches: Any) -> Any:
        """The next batch, on the clock."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    def lap(self) -> float:
        """The share since the last lap, 0 to 1."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return share
