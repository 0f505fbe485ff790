"""How well a run uses its machine: GMACs, share of the peak, and how long it waits for data."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from evovit_jax import flops
from evovit_jax.hardware import accelerators
from evovit_jax.models.variables import Variables
from evovit_jax.train import reduction_schedule
from evovit_jax.train.program import Program

# Metrics that differ between two runs of the same training.
MEASURED = ("images_per_second", "share_of_peak", "input_wait_share")


class Cost:
    """What a step of a run computes, by the phase that it is in."""

    def __init__(self, run: Program):
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
        return self._gmacs(reduction_schedule.at(self._run.phases, step).overrides)

    def _count(self, overrides: tuple[tuple[str, Any], ...]) -> float:
        run, size = self._run, self._run.config.model.image_size
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

        def logits(params: Variables, stats: Variables, images: jax.Array) -> jax.Array:
            return run.skeleton.build(params, stats)(images, reduction=dict(overrides))[0]

        return flops.macs_of(logits, run.like.params, run.like.stats, images) / 1e9

    def metrics(self, gmacs: float, images_per_second: float | None) -> dict[str, float]:
        """`gmacs`, and `share_of_peak` (0 to 1) on a known accelerator."""
        share = None if images_per_second is None else self._share(gmacs, images_per_second)
        return {"gmacs": gmacs} | ({} if share is None else {"share_of_peak": share})


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


class Pace:
    """Images a second, without compilation, evaluation and saving."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._since: float | None = None
        self._steps = 0
        self.seconds = 0.0
        self.images = 0

    def stepped(self) -> bool:
        """A step was taken; the first one after a pause only starts the clock, and is not counted.

        Returns:
          Whether it is counted.
        """
        if self._since is None:
            self._since = time.perf_counter()
            return False
        self._steps += 1
        return True

    def lap(self) -> float | None:
        """The rate since the last lap or pause, once the device is done; None for no step."""
        if self._since is None or not self._steps:
            return None
        now = time.perf_counter()
        seconds, images = now - self._since, self._steps * self._batch_size
        self.seconds += seconds
        self.images += images
        self._since, self._steps = now, 0
        return images / seconds

    def pause(self) -> None:
        """Stops the clock; steps that no lap has counted are left out."""
        self._since, self._steps = None, 0

    def rate(self) -> float | None:
        """The rate of all laps together."""
        return self.images / self.seconds if self.seconds else None


def progress(step: int, total: int, values: dict[str, float], batch_size: int) -> str:
    """The console's line: loss, accuracy, images a second, time left."""
    parts = [f"step {step}/{total}"]
    parts += [f"{name} {value:.4f}" for name, value in values.items() if name.startswith("loss")]
    parts.append(f"accuracy {values['accuracy']:.1f}%")
    rate = values.get("images_per_second")
    if rate:
        left = int((total - step) * batch_size / rate)
        parts += [f"{rate:.0f} images/s", f"{left // 60}m{left % 60:02d}s left"]
    return "  ".join(parts)
