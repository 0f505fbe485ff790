"""Profiler traces of some steps of a run, on demand: `--config.profile_steps=100:110`.

They lie in the work directory's `profile/`, for TensorBoard's profile plugin or xprof.
"""

import jax
from etils import epath

from evovit_jax.config.durations import profile_steps
from evovit_jax.workdir.remote import Mirror

FOLDER = "profile"


class Profiler:
    """Traces the steps of a range as the run passes them; every process traces its own devices."""

    def __init__(self, spec: str, workdir: epath.PathLike):
        self._steps = profile_steps(spec)
        self._mirror = Mirror(workdir) if self._steps else None
        self._is_on = False

    def before(self, step: int) -> None:
        """Called before step number `step` is taken; begins the trace when it is one of them."""
        if step in self._steps and not self._is_on:
            jax.profiler.start_trace(str(self._mirror.folder / FOLDER))
            self._is_on = True

    def after(self, step: int, state: object) -> None:
        """Called after it, with what it computes; ends the trace after the last one."""
        if self._is_on and step + 1 == self._steps.stop:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        self._is_on = False
        jax.profiler.stop_trace()
        self._mirror.push(FOLDER)

    def close(self) -> None:
        """Ends a trace that the run's end has cut short."""
        if self._is_on:
            self._stop()
        if self._mirror is not None:
            self._mirror.close()
