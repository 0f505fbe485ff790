"""What stays fixed while a run trains: mesh, network, teacher, optimiser and compiled steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

import evovit_jax
from evovit_jax import config as config_lib
from evovit_jax.config import durations
from evovit_jax.data import pipeline
from evovit_jax.data.on_device import Batch
from evovit_jax.errors import UserError
from evovit_jax.hardware import cpu
from evovit_jax.inference import compiled, scoring
from evovit_jax.models.variables import Skeleton, Variables
from evovit_jax.parallel import sharding
from evovit_jax.train import (
    initial_weights,
    learning_rate,
    losses,
    nan_guard,
    optimizer,
    reduction_schedule,
)
from evovit_jax.train.data import Data
from evovit_jax.train.distillation import Teacher, TeacherValues
from evovit_jax.train.reduction_schedule import Phase
from evovit_jax.train.state import TrainState
from evovit_jax.train.step import Overrides, TrainStep, new_meter


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The fixed parts of a training, made by `build`; the changing part is a `TrainState`.

    Attributes:
      config: as given, the number of classes filled in.
      data: what is trained and evaluated on.
      mesh: of all devices.
      total: steps of the training.
      every: {"checkpoint", "eval", "log"}: steps between two of them.
      phases: the reduction's settings over time.
      schedule: the learning rate by step.
      skeleton: the network without its variables.
      teacher: what the network also learns from, None without one.
      teacher_like: shapes, dtypes and shardings of the teacher's variables, likewise.
      step: the training step as a pure function.
      like: shapes, dtypes and shardings of the state.
      first_state: jitted, from (parameters, statistics) or None to the state before the first step.
      compiled_step: `step`, jitted.
    """

    config: ConfigDict
    data: Data
    mesh: jax.sharding.Mesh
    total: int
    every: dict[str, int]
    phases: tuple[Phase, ...]
    schedule: learning_rate.Schedule
    skeleton: Skeleton
    teacher: Teacher | None
    teacher_like: TeacherValues | None
    step: TrainStep
    like: TrainState
    first_state: Callable[..., TrainState]
    compiled_step: Callable[..., TrainState]

    def create_model(self) -> nnx.Module:
        """The network with its random initial values."""
        return create_model(self.config)

    def fresh_state(self) -> TrainState:
        """The state before the first step.

        Raises:
          UserError: `config.init_weights` cannot be read, do not fit, or are not finite.
        """
        path = self.config.init_weights
        if not path:
            return self.first_state(None)
        allowed = self.config.init_allow_missing or False
        values = initial_weights.load(self.create_model(), path, allow_missing=allowed)
        nan_guard.check_values(values[0], path)
        return self.first_state(values)

    def load_teacher(self) -> TeacherValues | None:
        """The teacher's variables on the mesh, None without a teacher.

        Raises:
          UserError: its weights cannot be read, or do not fit.
        """
        if self.teacher is None:
            return None
        placed = shardings_of(self.teacher_like)
        return jax.jit(lambda values: values, out_shardings=placed)(self.teacher.load())

    def stale_average(self) -> float:
        """The share that the initial values have in the average after the last step."""
        ema = self.config.ema
        return 0.0 if ema.warmup else ema.decay**self.total

    def fresh_meter(self) -> dict[str, Any]:
        """A meter over no step."""
        return jax.device_put(new_meter(self.step.measured), sharding.replicated(self.mesh))

    @property
    def guarded(self) -> list[str]:
        """What the positions mean that the NaN guard finds."""
        return nan_guard.names_of(self.step.terms, self.step.names)

    def check(self) -> None:
        """Traces the first step, for what only the network's outputs show to be wrong.

        Nothing is computed; the step need not be traced again when it is taken.

        Raises:
          UserError: the loss, its weights or the kind of distillation do not fit the network.
        """
        overrides = reduction_schedule.at(self.phases, 0).overrides
        with jax.set_mesh(self.mesh):
            self.compiled_step.eval_shape(
                self.like, abstract_batch(self), overrides, self.teacher_like
            )

    def step_at(self, step: int) -> "PhaseStep":
        """The compiled training step of the phase that step number `step` is in."""
        overrides = reduction_schedule.at(self.phases, step).overrides
        return PhaseStep(self.compiled_step, overrides, self.teacher_like)

    @functools.cached_property
    def inference(self) -> tuple[Callable[..., tuple[Any, tuple[Any, ...]]], Callable[..., Any]]:
        """`look` and `fold` of the network, as `compiled.of_pixels` has them."""
        model = self.skeleton.build(self.like.params, self.like.stats)
        return compiled.of_pixels(model, self.config.mean, self.config.std)

    @functools.cached_property
    def _eval_step(self) -> tuple[Callable, Callable]:
        """`step(state, sums, batch) -> sums`, as `evaluate` has it, and what makes its state."""
        look, fold = self.inference
        return scoring.make_step(lambda state, pixels: look(state, pixels)[0], self.mesh), fold

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """`val_top1` and `val_top5` in percent and `val_loss`, of the averages where there are."""
        step, fold = self._eval_step
        step = functools.partial(step, fold(*state.evaluated()))
        values = scoring.evaluate(step, self.data.eval_batches, self.mesh)
        return {f"val_{name}": values[name] for name in ("top1", "top5", "loss")}


def abstract_batch(run: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch, and where it lives."""
    size, count = run.config.model.image_size, run.config.batch_size
    placed = sharding.batch_sharding(run.mesh)
    return {
        "image": jax.ShapeDtypeStruct((count, size, size, 3), "uint8", sharding=placed),
        "label": jax.ShapeDtypeStruct((count,), "int32", sharding=placed),
    }


@dataclasses.dataclass(frozen=True)
class PhaseStep:
    """The compiled training step of one phase of the reduction."""

    jitted: Callable[..., TrainState]
    overrides: Overrides
    teacher_like: TeacherValues | None

    def __call__(
        self, state: TrainState, batch: Batch, teacher: TeacherValues | None = None
    ) -> TrainState:
        """Takes the step; `state` is donated. `teacher` is what `load_teacher` returned."""
        return self.jitted(state, batch, self.overrides, teacher)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Lowers it for these arrays or their shapes; no weights of the teacher are loaded."""
        return self.jitted.lower(state, batch, self.overrides, self.teacher_like)


def build(
    config: ConfigDict,
    devices: list[jax.Device] | None = None,
    *,
    examples: int | None = None,
) -> Program:
    """The program of a run on `devices` (all by default).

    Reads the data set's size, unless `examples` (of an epoch) says what it would be, and its number
    of classes, unless the config does.

    Raises:
      UserError: the config cannot be used, or not on these devices.
    """
    config_lib.check(config)
    config = config.copy_and_resolve_references()
    data = Data(config)
    if config.model.num_classes is None:
        config.model.num_classes = data.train_source.num_classes
    mesh = sharding.make_mesh(config, devices)

    examples = examples or pipeline.examples_per_epoch(config, data.train_source)
    total, every = _lengths(config, examples)
    phases = reduction_schedule.plan(config, total=total, examples=examples)
    warmup = durations.steps(config, "warmup", examples) or 0
    schedule = learning_rate.learning_rate(config, total=total, warmup=warmup)

    step = _pure_step(config, schedule, durations.steps(config, "freeze", examples))

    def first_state(values: tuple[Variables, Variables] | None) -> TrainState:
        return step.first_state(*(values or Skeleton.variables(create_model(config))))

    like = jax.eval_shape(first_state, None)
    of_params = sharding.param_shardings(mesh, like.params, config.mesh.rules)
    placed = sharding.state_shardings(mesh, like, of_params)
    teacher_like = None if step.teacher is None else _place_teacher(step.teacher, mesh)
    return Program(
        config=config,
        data=data,
        mesh=mesh,
        total=total,
        every=every,
        phases=phases,
        schedule=schedule,
        skeleton=step.skeleton,
        teacher=step.teacher,
        teacher_like=teacher_like,
        step=step,
        like=_with_shardings(like, placed),
        first_state=jax.jit(first_state, out_shardings=placed),
        compiled_step=_compiled(step, mesh, placed, shardings_of(teacher_like)),
    )


def _lengths(config: ConfigDict, examples: int) -> tuple[int, dict[str, int]]:
    """`Program.total` and `Program.every`."""
    total = durations.steps(config, "total", examples)
    if not total:
        raise UserError("the training has no length: set total_steps, _epochs or _examples")
    names = ("checkpoint", "eval", "log")
    return total, {name: durations.steps(config, name, examples) or total for name in names}


def _pure_step(
    config: ConfigDict, schedule: learning_rate.Schedule, freeze: int | None
) -> TrainStep:
    """The network, the loss, the teacher and the optimiser of a run."""
    network = nnx.eval_shape(functools.partial(create_model, config))
    params, _ = Skeleton.variables(network)
    return TrainStep(
        config=config,
        skeleton=Skeleton(network),
        tx=optimizer.optimizer(config, params, schedule, freeze=freeze),
        terms=losses.names(config, network),
        names=tuple(params),
        teacher=Teacher.of(config),
    )


def create_model(config: ConfigDict) -> nnx.Module:
    """The network of a config with its random initial values."""
    fields = {k: v for k, v in config.model.items() if k != "name" and v is not None}
    return evovit_jax.create_model(
        config.model.name, config.reduction or None, seed=config.seed, **fields
    )


def _place_teacher(teacher: Teacher, mesh: jax.sharding.Mesh) -> TeacherValues:
    """Shapes of the teacher's variables where they live: parameters as the student's by default."""
    params, stats = teacher.like
    placed = sharding.param_shardings(mesh, params, ((".*", "fsdp"),))
    return _with_shardings(teacher.like, (placed, dict.fromkeys(stats, sharding.replicated(mesh))))


def _compiled(
    step: TrainStep, mesh: jax.sharding.Mesh, placed: TrainState, teacher_placed: Any
) -> Callable[..., TrainState]:
    """`train_step(state, batch, overrides, teacher)`, compiled once for each of `overrides`."""

    def train_step(
        state: TrainState, batch: Batch, overrides: Overrides, teacher: TeacherValues | None
    ) -> TrainState:
        return step(state, batch, overrides, teacher)

    platform = mesh.devices.flat[0].platform
    return jax.jit(
        train_step,
        static_argnums=2,
        in_shardings=(placed, sharding.batch_sharding(mesh), teacher_placed),
        out_shardings=placed,
        donate_argnums=0,
        compiler_options=cpu.training_options(platform, step.config.model.remat),
    )


def _with_shardings(like: Any, placed: Any) -> Any:
    """The shapes `like` with the shardings `placed`."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like, placed
    )


def shardings_of(like: Any) -> Any:
    """The shardings of a tree of shapes."""
    return jax.tree.map(lambda leaf: leaf.sharding, like)
