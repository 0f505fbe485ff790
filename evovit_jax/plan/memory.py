"""What a run needs of a machine that is not here: `main --plan --devices=64`.

The training step is compiled for a mesh of virtual CPU devices from shapes alone, so that no
parameter exists. What the state takes is exact on any machine; activations and collectives are as
the CPU's compiler lays them out, and another one fuses and overlaps more (docs/scaling.md).
"""

import math
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from evovit_jax.data import pipeline
from evovit_jax.data.spec import DataSpec
from evovit_jax.errors import UserError
from evovit_jax.hardware import cpu
from evovit_jax.parallel import sharding
from evovit_jax.plan import collectives
from evovit_jax.plan import report as plan_report
from evovit_jax.plan.report import Plan
from evovit_jax.train import reduction_schedule
from evovit_jax.train.program import Program, build

# Images of an epoch: the length of a run does not change its steps, so data need not be at hand.
EXAMPLES = 1_281_167
COMPILER = {
    # Only memory and communication are looked at, so the machine code need not be fast.
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **cpu.KEEP_BARRIERS,
}


def make(config: ConfigDict, devices: list[jax.Device]) -> Plan:
    """Compiles the first phase's step of a run for `devices`.

    Raises:
      UserError: the config does not fit the devices.
    """
    config = config.copy_and_resolve_references()
    if config.model.num_classes is None:
        config.model.num_classes = num_classes(config)
    run = build(config, devices, examples=EXAMPLES)
    start = time.perf_counter()
    with jax.set_mesh(run.mesh):
        lowered = run.step_at(0).lower(run.like, abstract_batch(run))
        compiled = lowered.compile(compiler_options=COMPILER)
    seconds = time.perf_counter() - start
    batch = bytes_per_device(abstract_batch(run))
    state = run.like
    return Plan(
        model=f"{config.model.name} ({config.reduction or 'its own reduction'})",
        phase=reduction_schedule.describe(run.phases[0]),
        devices=len(devices),
        mesh=dict(run.mesh.shape),
        batch_size_per_device=config.batch_size // len(devices),
        param_bytes_per_device=bytes_per_device(state.params),
        optimizer_bytes_per_device=bytes_per_device(state.opt_state),
        ema_bytes_per_device=bytes_per_device(state.ema),
        other_bytes_per_device=bytes_per_device((state.stats, state.meter, state.step)) + batch,
        activation_bytes_per_device=compiled.memory_analysis().temp_size_in_bytes,
        collectives=collectives.read(compiled.as_text(), len(devices)),
        compile_seconds=round(seconds, 1),
    )


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


def abstract_batch(run: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch, and where it lives."""
    size, count = run.config.model.image_size, run.config.batch_size
    placed = sharding.batch_sharding(run.mesh)
    return {
        "image": jax.ShapeDtypeStruct((count, size, size, 3), "uint8", sharding=placed),
        "label": jax.ShapeDtypeStruct((count,), "int32", sharding=placed),
    }


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
