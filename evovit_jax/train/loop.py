"""The order of a run: restore, evaluate, save, step, write.

At every step the loop first looks at the state that it has (evaluates it, saves it), and only
then takes a batch and changes it, so that a checkpoint's state and data iterator belong together.
The host waits for the device once an interval of metrics, and where it evaluates or saves.
"""

import contextlib
import dataclasses
import hashlib
import json
from importlib import resources
from typing import Any

import jax
from etils import epath
from jax.profiler import StepTraceAnnotation
from ml_collections import ConfigDict

from evovit_jax.hardware import cpu
from evovit_jax.parallel import agreement, sharding
from evovit_jax.parallel.preemption import Preemption
from evovit_jax.train import enough_memory, nan_guard, reduction_schedule
from evovit_jax.train.profiler import Profiler
from evovit_jax.train.program import Program, build
from evovit_jax.train.token_pictures import TokenPictures
from evovit_jax.train.utilisation import Cost, InputWait, Pace, progress
from evovit_jax.workdir import class_names, config_file, lock
from evovit_jax.workdir.checkpoints import Checkpointer
from evovit_jax.workdir.config_file import kept, locate
from evovit_jax.workdir.metrics import MetricWriter

STALE = 0.1  # share of the initial values in the final average above which it is said


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      summary: `step`, `val_top1`, `val_top5`, `val_loss`, `images_per_second`, `workdir`.
      preempted: SIGTERM ended it after a checkpoint; run again, it goes on.
    """

    summary: dict[str, Any]
    preempted: bool


def train_and_evaluate(config: ConfigDict, workdir: epath.PathLike) -> Result:
    """Trains what `workdir` does not have yet, and evaluates.

    Raises:
      UserError: the config, the data or the work directory cannot be used, or a tensor is not
        finite.
    """
    workdir = locate(workdir)
    agreement.refuse_differing({"workdir": str(workdir), **started_with(config)})
    with contextlib.ExitStack() as stack:
        with agreement.all_or_none():
            run = build(config)
            enough_memory.check(run)
            run.check()
            stack.callback(run.data.close)
            data = stack.enter_context(contextlib.closing(run.data.train_iterator()))
            about = run.data.describe()
            pictures = TokenPictures(run)
            profiler = Profiler(run.config.profile_steps, workdir)
            stack.callback(profiler.close)
        agreement.refuse_differing({"the data": about})
        stack.enter_context(lock.held(workdir))
        stack.enter_context(jax.set_mesh(run.mesh))
        preemption = stack.enter_context(Preemption())
        with kept(workdir, run.config) as changes:
            for change in changes:
                say(f"changed since this run began: {change}")
            say(about)
            checkpoints = stack.enter_context(
                Checkpointer(
                    workdir, keep=run.config.keep_checkpoints, keep_best=run.config.keep_best
                )
            )
            loop = Loop(run, workdir, checkpoints, preemption, data, profiler, pictures)
            stack.callback(loop.writer.close)
            class_names.write(workdir, run.data.train_source.class_names)
        return loop.go()


def started_with(config: ConfigDict) -> dict[str, Any]:
    """What all processes of a run have in common: the config's fields, and the code."""
    code = hashlib.sha256()
    for file in sorted(resources.files("evovit_jax").rglob("*.py")):
        code.update(file.read_bytes())
    versions = {"jax": jax.__version__, "the code's hash": code.hexdigest()[:12]}
    fields = config_file.flat(json.loads(json.dumps(config.to_dict())))
    return {**{f"config.{name}": value for name, value in fields.items()}, **versions}


class Loop:
    """One pass over the steps that are left."""

    def __init__(
        self,
        run: Program,
        workdir: epath.Path,
        checkpoints: Checkpointer,
        preemption: Preemption,
        data: Any,
        profiler: Profiler,
        pictures: TokenPictures,
    ):
        self.run, self.workdir = run, workdir
        self.checkpoints, self.preemption = checkpoints, preemption
        self.data, self.profiler, self.pictures = data, profiler, pictures
        restored = checkpoints.restore(run.like)
        if restored is None:
            self.restored, self.state = None, run.fresh_state()
        else:
            self.state, data_state = restored
            self.data.set_state(data_state)
            self.restored = int(self.state.step)
            say(f"restored step {self.restored}")
        # What does not fit is said before anything is written.
        self.teacher = run.load_teacher() if (self.restored or 0) < run.total else None
        self.writer = MetricWriter(workdir, self.restored)
        self.pace = Pace(run.config.batch_size)
        self.cost, self.wait, self.gmacs = Cost(run), InputWait(), 0.0
        self.evaluated: tuple[int, dict[str, float]] | None = None

    def go(self) -> Result:
        """Trains to the end, or to a preemption."""
        run, start = self.run, self.restored or 0
        say(f"{run.mesh.size} devices, {describe(run)}")
        stale = run.stale_average()
        if stale > STALE:
            say(
                f"the average that is evaluated will still hold {stale:.0%} of the first values at "
                "the end; set ema.warmup=True or lower ema.decay"
            )
        if start >= run.total:
            say(f"the run is complete at step {start}; evaluating it")
        step, preempted = start, False
        for step in range(start, run.total):
            preempted = self.preemption.reached(step)
            self.look(step, preempted=preempted)
            if preempted:
                break
            # Whatever is moved between host and device in a step is moved on purpose.
            with StepTraceAnnotation("train", step_num=step), jax.transfer_guard("disallow"):
                self.take(step)
            if (step + 1) % run.every["log"] == 0 or step + 1 == run.total:
                self.log(step + 1)
        else:
            step = max(start, run.total)
            self.evaluate(step)
            self.save(step)
        self.checkpoints.wait()
        return Result(self.summary(step), preempted)

    def look(self, step: int, *, preempted: bool) -> None:
        """Evaluates and saves the state after `step` steps, where it is time to."""
        due = {name: step > 0 and step % every == 0 for name, every in self.run.every.items()}
        # A run that SIGTERM ended here has not evaluated yet; it does so when it goes on.
        if due["eval"] and not preempted and not self.writer.has_evaluation(step):
            self.evaluate(step)
        if due["checkpoint"] or preempted:
            self.save(step)
        if preempted:
            say(f"SIGTERM: saved step {step}")

    def save(self, step: int) -> None:
        """Saves the state after `step` steps, unless it is on disk already."""
        if step in (0, self.restored):
            return
        self.guard()
        self.pace.pause()
        cpu.give_back()  # the steps until the next save keep what they need
        self.checkpoints.save(step, self.state, self.data.get_state(), self.writer.top1)

    def take(self, step: int) -> None:
        """One optimiser step."""
        self.profiler.before(step)
        batch = self.wait.take(self.data)
        batch = {name: batch[name] for name in ("image", "label")}
        batch = sharding.put_batch(self.run.mesh, batch)
        if any(phase.start == step for phase in self.run.phases):
            self.pace.pause()  # another program: its compilation is no part of the pace
            say(reduction_schedule.describe(reduction_schedule.at(self.run.phases, step)))
        self.gmacs = self.cost.gmacs(step)  # counted here, where the program is compiled too
        self.state = self.run.step_at(step)(self.state, batch, self.teacher)
        if not self.pace.stepped():
            self.wait.lap()  # what the first step waited for is no part of the pace either
        self.profiler.after(step, self.state)

    def log(self, step: int) -> None:
        """Writes the means since the last line."""
        meter = jax.device_get(self.state.meter)
        self.guard(meter)
        steps = int(meter["steps"])
        values = {name: float(total) / steps for name, total in meter["sums"].items()}
        values["accuracy"] *= 100
        values["learning_rate"] = float(self.run.schedule(step - 1))
        rate = self.pace.lap()
        waited = self.wait.lap()
        if rate is not None:
            values |= {"images_per_second": rate, "input_wait_share": waited}
        values |= self.cost.metrics(self.gmacs, rate)
        self.writer.write(step, values)
        say(progress(step, self.run.total, values, self.run.config.batch_size))
        self.state = self.state.replace(meter=self.run.fresh_meter())

    def evaluate(self, step: int) -> None:
        """Evaluates the state after `step` steps."""
        self.guard()
        self.pace.pause()
        new = not self.writer.has_evaluation(step)  # the same on all processes
        try:
            values = self.run.evaluate(self.state)
            pictures = self.pictures.of(self.state) if new else {}
        except Exception:
            if jax.process_count() == 1:  # with several, the others may not have failed
                self.save(step)  # what was trained is not lost with it
            raise
        self.evaluated = (step, values)
        if new:
            self.writer.write(step, values)
            self.writer.show(step, pictures)
        found = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        say(f"step {step}/{self.run.total}  {found}")

    def guard(self, meter: dict[str, Any] | None = None) -> None:
        """Stops the run where the NaN guard found something."""
        bad = int((meter or self.state.meter)["bad"])
        if bad != nan_guard.ALL_FINITE:
            self.checkpoints.wait()
            last_good = self.checkpoints.latest_step()
            nan_guard.stop(self.run.guarded[bad], int(self.state.step), last_good)

    def summary(self, step: int) -> dict[str, Any]:
        """What the last line of output says."""
        values = self.evaluated[1] if self.evaluated else {}
        names = ("val_top1", "val_top5", "val_loss")
        rate = self.pace.rate() or self.writer.last.get("images_per_second")
        return {
            "step": step,
            **{name: values.get(name, self.writer.last.get(name)) for name in names},
            "images_per_second": rate,
            "workdir": str(self.workdir),
        }


def describe(run: Program) -> str:
    """A run in half a line."""
    model = run.config.model
    count = sum(leaf.size for leaf in jax.tree.leaves(run.like.params))
    reduction = run.config.reduction or "its own reduction"
    return f"{model.name} ({reduction}), {count / 1e6:.2f} M parameters, {run.total} steps"


def say(text: str) -> None:
    """A line on the console of the first process."""
    if jax.process_index() == 0:
        print(text, flush=True)
