"""What a run needs of a machine that is not here: `main --plan --devices=64`.

The training step is compiled for a mesh of virtual CPU devices from shapes alone, so that no
parameter exists. What the state takes is exact on any machine; activations and collectives are as
the CPU's compiler lays them out, and another one fuses and overlaps more (docs/scaling.md).
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from evovit_jax.data import pipeline
from evovit_jax.data.spec import DataSpec
from evovit_jax.errors import UserError
from evovit_jax.hardware import cpu
from evovit_jax.plan import collectives
from evovit_jax.plan import report as plan_report
from evovit_jax.plan.report import Plan
from evovit_jax.train import reduction_schedule
from evovit_jax.train.program import Program, abstract_batch, build

# Images of an epoch: the length of a run does not change its steps, so data need not be at hand.
EXAMPLES = 1_281_167
OTHER_SIZES = {
    "cifar10": 50_000,
    "cifar100": 50_000,
}  # of data sets that need not be at hand either
COMPILER = {
    # Only memory and communication are looked at, so the machine code need not be fast.
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **cpu.KEEP_BARRIERS,
}


def make(config: ConfigDict, devices: list[jax.Device]) -> Plan:
    """Compiles the first phase's step of a run for `devices`, those of a CPU.

    Raises:
      UserError: the config does not fit the devices.
    """

    def compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, dict[str, Any]]:
        return lowered.compile(compiler_options=COMPILER), {}

    return compiled_plan(program(config, devices), 0, compiled)[0]


def program(config: ConfigDict, devices: list[jax.Device]) -> Program:
    """The run on `devices`; its data need not be at hand.

    Raises:
      UserError: the config does not fit the devices.
    """
    config = config.copy_and_resolve_references()
    if config.model.num_classes is None:
        config.model.num_classes = num_classes(config)
    return build(config, devices, examples=examples(config))


def examples(config: ConfigDict) -> int:
    """Images of an epoch, those of ImageNet where the data set's name does not say."""
    return OTHER_SIZES.get(DataSpec.parse(config.data).name.partition(":")[0], EXAMPLES)


def compiled_plan(
    run: Program,
    step: int,
    compiled_by: Callable[[jax.stages.Lowered], tuple[jax.stages.Compiled, Mapping[str, Any]]],
    compiler: str = Plan.compiler,
) -> tuple[Plan, str]:
    """What step number `step` of a run needs, and the text of its compiled program.

    Args:
      run: the run.
      step: it stands for all steps of its phase.
      compiled_by: compiles it, and says what options that took beyond the usual.
      compiler: what the plan says that it was compiled by; such options are added.
    """
    devices, batch, state = run.mesh.size, abstract_batch(run), run.like
    start = time.perf_counter()
    with jax.set_mesh(run.mesh):
        compiled, more = compiled_by(run.step_at(step).lower(state, batch))
    seconds = time.perf_counter() - start
    on_tpu = run.mesh.devices.flat[0].platform == "tpu"
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    teacher = bytes_per_device(run.teacher_like)
    given = bytes_per_device((state, batch)) + teacher
    taken = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    plan = Plan(
        model=f"{run.config.model.name} ({run.config.reduction or 'its own reduction'})",
        phase=reduction_schedule.describe(reduction_schedule.at(run.phases, step)),
        devices=devices,
        mesh=dict(run.mesh.shape),
        batch_size_per_device=run.config.batch_size // devices,
        param_bytes_per_device=bytes_per_device(state.params),
        optimizer_bytes_per_device=bytes_per_device(state.opt_state),
        ema_bytes_per_device=bytes_per_device(state.ema),
        other_bytes_per_device=bytes_per_device((state.stats, state.meter, state.step, batch)),
        activation_bytes_per_device=sizes.temp_size_in_bytes,
        collectives=collectives.read(text, devices),
        compile_seconds=round(seconds, 1),
        teacher_bytes_per_device=teacher,
        padding_bytes_per_device=max(0, taken - given),
        program_bytes_per_device=sizes.generated_code_size_in_bytes if on_tpu else 0,
        compiler=", ".join([compiler, *(f"{name}={value}" for name, value in more.items())]),
    )
    return plan, text


def num_classes(config: ConfigDict) -> int:
    """Classes of `config.data`; a TFDS data set need not be there, and is not prepared.

    Raises:
      UserError: they are not known.
    """
    spec = DataSpec.parse(config.data)
    if spec.kind != "tfds" or spec.name.startswith("digits"):
        return pipeline.train_source(config).num_classes
    from evovit_jax.data import tfds_source

    labels = tfds_source.labels(spec.name, config.data_dir)
    if labels is None:
        raise UserError(f"the classes of {config.data} are not known here: set model.num_classes")
    return labels.num_classes


def bytes_per_device(tree: Any) -> int:
    """What the arrays of a tree of shapes take on each device of their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def main(config: ConfigDict, *, devices: int, hbm_gib: float | None, as_json: bool) -> int:
    """The command; JAX may not have looked for devices yet. Returns the exit status.

    Raises:
      UserError: `devices` is not positive, or the config does not fit them.
    """
    if devices < 1:
        raise UserError(f"--devices={devices}: say how many devices to plan for, --devices=64")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    plan = make(config, jax.devices())
    report = plan_report.as_json if as_json else plan_report.as_text
    print(report(plan, hbm_gib), flush=True)
    return 0
