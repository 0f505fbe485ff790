"""What a run is made of: mesh, network, optimiser, schedules and compiled steps, from a config."""

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
from evovit_jax.data.source import Source
from evovit_jax.errors import UserError
from evovit_jax.hardware import cpu
from evovit_jax.inference import compiled, scoring
from evovit_jax.models.variables import Skeleton
from evovit_jax.parallel import sharding
from evovit_jax.train import (
    distillation,
    initial_weights,
    learning_rate,
    losses,
    nan_guard,
    optimizer,
    reduction_schedule,
)
from evovit_jax.train.state import TrainState, new_state
from evovit_jax.train.step import MEASURED, TrainStep, new_meter


class Run:
    """The fixed parts of a training; the changing part is a `TrainState`.

    Attributes:
      config: as given, the number of classes filled in.
      mesh: of all devices.
      total: steps of the training.
      every: {"checkpoint", "eval", "log"}: steps between two of them.
      phases: the reduction's settings over time.
      schedule: the learning rate by step.
      like: the state's shapes, dtypes and shardings.
      teacher_like: the teacher's shapes and dtypes, None without one.
    """

    def __init__(
        self,
        config: ConfigDict,
        devices: list[jax.Device] | None = None,
        *,
        examples: int | None = None,
    ):
        """Reads the data set's size, unless `examples` (of an epoch) says what it would be."""
        config_lib.check(config)
        self.config = config = config.copy_and_resolve_references()
        if config.model.num_classes is None:
            config.model.num_classes = self.train_source.num_classes
        self.mesh = sharding.make_mesh(config, devices)
        examples = examples or pipeline.examples_per_epoch(config, self.train_source)
        self._set_durations(examples)
        self.phases = reduction_schedule.plan(config, total=self.total, examples=examples)
        warmup = durations.steps(config, "warmup", examples) or 0
        self.schedule = learning_rate.learning_rate(config, total=self.total, warmup=warmup)
        self._make_step(durations.steps(config, "freeze", examples))

    def _set_durations(self, examples: int) -> None:
        total = durations.steps(self.config, "total", examples)
        if not total:
            raise UserError("the training has no length: set total_steps, _epochs or _examples")
        self.total = total
        self.every = {
            name: durations.steps(self.config, name, examples) or total
            for name in ("checkpoint", "eval", "log")
        }

    def _make_step(self, freeze: int | None) -> None:
        abstract = nnx.eval_shape(self.create_model)
        self.skeleton = Skeleton(abstract)
        params, stats = Skeleton.variables(abstract)
        tx = optimizer.optimizer(self.config, params, self.schedule, freeze=freeze)
        classes, teacher = self.config.model.num_classes, distillation.make_teacher(self.config)
        step = TrainStep(self.config, self.skeleton, tx, classes, teacher=teacher)
        self._place_teacher()
        terms = self._term_names(step, params, stats)
        self._step = dataclasses.replace(step, terms=terms, names=tuple(params))
        self.guarded = nan_guard.names_of(terms, list(params))
        self.meter_names = (*terms, *MEASURED)
        like = jax.eval_shape(functools.partial(self._fresh, tx))
        placed = sharding.param_shardings(self.mesh, params, self.config.mesh.rules)
        self.shardings = sharding.state_shardings(self.mesh, like, placed)
        self.like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, self.shardings
        )
        self._init = jax.jit(functools.partial(self._fresh, tx), out_shardings=self.shardings)
        self._compiled = functools.cache(self._compile)

    def create_model(self) -> nnx.Module:
        """The network with its random initial values."""
        fields = {k: v for k, v in self.config.model.items() if k != "name" and v is not None}
        reduction = self.config.reduction or None
        return evovit_jax.create_model(
            self.config.model.name, reduction, seed=self.config.seed, **fields
        )

    def _term_names(self, step: TrainStep, params: Any, stats: Any) -> tuple[str, ...]:
        """Names of the loss's terms, in every phase the same ones."""
        config, size = self.config, self.config.model.image_size
        batch = self.config.batch_size // config.accumulate
        images = jax.ShapeDtypeStruct((batch, size, size, 3), "float32")
        targets = jax.ShapeDtypeStruct((batch, config.model.num_classes), "float32")
        loss = functools.partial(step.loss, overrides=self.phases[0].overrides)
        given = (params, stats, images, targets, jax.random.key(0))
        _, (_, terms) = jax.eval_shape(loss, *given, teacher=self.teacher_like)
        return tuple(name for name in losses.in_order(terms) if name not in MEASURED)

    def _place_teacher(self) -> None:
        """Finds `teacher_like` (None without a teacher) and where it lives: as parameters do."""
        self.teacher_like, self._teacher_shardings = None, None
        if self.config.distill.kind == "none":
            return
        params, stats = like = distillation.abstract_values(self.config)
        placed = sharding.param_shardings(self.mesh, params, ((".*", "fsdp"),))
        self.teacher_like = like
        self._teacher_shardings = (placed, dict.fromkeys(stats, sharding.replicated(self.mesh)))

    @functools.cached_property
    def teacher_values(self) -> distillation.TeacherValues | None:
        """The teacher's variables on the mesh, None without a teacher."""
        if self.teacher_like is None:
            return None
        values = distillation.load_values(self.config)
        return jax.jit(lambda v: v, out_shardings=self._teacher_shardings)(values)

    def _fresh(self, tx: Any, values: Any = None) -> TrainState:
        params, stats = Skeleton.variables(self.create_model()) if values is None else values
        meter = new_meter(self.meter_names)
        return new_state(params, stats, tx, meter, keep_average=self.config.ema.decay > 0)

    def fresh_state(self) -> TrainState:
        """The state before the first step."""
        if not self.config.init_weights:
            return self._init()
        model = self.create_model()
        allowed = self.config.init_allow_missing or False
        values = initial_weights.load(model, self.config.init_weights, allow_missing=allowed)
        nan_guard.check_values(values[0], self.config.init_weights)
        return self._init(values=values)

    def stale_average(self) -> float:
        """The share that the initial values have in the average after the last step."""
        ema = self.config.ema
        return 0.0 if ema.warmup else ema.decay**self.total

    def fresh_meter(self) -> dict[str, Any]:
        """A meter over no step."""
        return jax.device_put(new_meter(self.meter_names), sharding.replicated(self.mesh))

    def step_at(self, step: int) -> "Step":
        """The compiled training step of the phase that step number `step` is in."""
        return Step(self._compiled(reduction_schedule.at(self.phases, step).overrides), self)

    def _compile(self, overrides: tuple[tuple[str, Any], ...]) -> Callable:
        def train_step(state: TrainState, batch: Batch, teacher: Any) -> TrainState:
            return self._step(state, batch, overrides, teacher)

        return jax.jit(
            train_step,
            in_shardings=(
                self.shardings,
                sharding.batch_sharding(self.mesh),
                self._teacher_shardings,
            ),
            out_shardings=self.shardings,
            donate_argnums=0,
            compiler_options=cpu.compiler_options(
                self.mesh.devices.flat[0].platform, self.config.model.remat
            ),
        )

    @functools.cached_property
    def train_source(self) -> Source:
        """What is trained on, opened once: a folder of a million files takes seconds to list."""
        return pipeline.train_source(self.config)

    @functools.cached_property
    def eval_source(self) -> Source:
        """What is evaluated on, its classes numbered as in training."""
        return pipeline.eval_source(self.config, self.train_source)

    def describe_data(self) -> str:
        """The data in a line; opens what is evaluated on, before anything is trained.

        Raises:
          UserError: it cannot be opened, or has other classes than what is trained on.
        """
        train, found = self.train_source, self.eval_source
        return (
            f"{train.name}, {len(train)} images of {train.num_classes} classes; "
            f"evaluated on {found.name}, {len(found)} images"
        )

    @functools.cached_property
    def eval_batches(self) -> pipeline.EvalBatches:
        """This process's evaluation batches."""
        return pipeline.make_eval_batches(
            self.config,
            local_batch_size=self.config.eval_batch_size // jax.process_count(),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            source=self.eval_source,
        )

    @functools.cached_property
    def _eval_step(self) -> tuple[Callable, Callable]:
        """`step(state, sums, batch) -> sums`, as `evaluate` has it, and what makes its state."""
        model = self.skeleton.build(self.like.params, self.like.stats)
        look, fold = compiled.of_pixels(model, self.config.mean, self.config.std)
        return scoring.make_step(lambda state, pixels: look(state, pixels)[0], self.mesh), fold

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """`val_top1` and `val_top5` in percent and `val_loss`, of the averages where there are."""
        step, fold = self._eval_step
        step = functools.partial(step, fold(*state.evaluated()))
        values = scoring.evaluate(step, self.eval_batches, self.mesh)
        return {f"val_{name}": values[name] for name in ("top1", "top5", "loss")}

    def train_iterator(self) -> Any:
        """This process's endless training batches."""
        return pipeline.make_train_iterator(
            self.config,
            local_batch_size=self.config.batch_size // jax.process_count(),
            seed=self.config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            source=self.train_source,
        )


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted training step with the run's teacher, if it has one."""

    jitted: Callable
    run: Run

    def __call__(self, state: TrainState, batch: Batch) -> TrainState:
        """Takes the step; `state` is donated."""
        return self.jitted(state, batch, self.run.teacher_values)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Lowers it for these arrays or their shapes; no weights of the teacher are loaded."""
        return self.jitted.lower(state, batch, self.run.teacher_like)
