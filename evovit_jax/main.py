"""Trains and evaluates: `python -m evovit_jax.main --config=digits_evo --workdir=DIR`.

--config is the name of a recipe of this package, or a file, `configs/digits_evo.py`. A run that DIR
has a part of goes on from there. The last line of output is a JSON object. The exit status is 0, 2
after an error that the user can mend, 143 after SIGTERM, and 75 after SIGINT, SIGHUP or the death
of another process of the run (run it again to go on).
With `--plan --devices=64` it says instead what each of so many devices needs memory for, with
`--plan --topology=v5e:8x8` what an accelerator's own compiler makes of the step (`h100:1x8` too).
"""

import sys

from absl import flags
from ml_collections import config_flags

from evovit_jax import config as config_lib
from evovit_jax import tables
from evovit_jax.errors import UserError, run_command
from evovit_jax.hardware import limits
from evovit_jax.parallel import processes

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config",
    None,
    "The recipe: FILE.py, or the name of one of this package, such as deit_s_evo; each may be "
    "followed by :VARIANT. --config.FIELD=VALUE changes a field.",
)
flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go, and are found again.")
flags.DEFINE_bool("plan", False, "Say what a step needs on --devices devices, and train nothing.")
flags.DEFINE_integer("devices", 0, "With --plan: how many virtual devices to compile for.")
flags.DEFINE_string(
    "topology", "", "With --plan: accelerators that are not here, v5e:8x8 or h100:1x8."
)
flags.DEFINE_float("hbm_gib", None, "With --plan: memory of a device; says whether the run fits.")
flags.DEFINE_bool("json", False, "With --plan: print one JSON object.")


def main() -> int:
    """The command; returns its exit status."""
    config = config_lib.from_flags(FLAGS, sys.argv, ("config",))
    limits.check()
    if FLAGS.plan:
        from evovit_jax.plan import memory, topology

        shared = {"hbm_gib": FLAGS.hbm_gib, "as_json": FLAGS.json}
        if FLAGS.topology:
            return topology.main(config, topology=FLAGS.topology, **shared)
        return memory.main(config, devices=FLAGS.devices, **shared)
    if FLAGS.workdir is None:
        raise UserError("--workdir is required; --help shows all flags")
    with processes.joined() as parent:
        import jax

        from evovit_jax.hardware import cpu, tpu_presence
        from evovit_jax.parallel import preemption
        from evovit_jax.train import loop

        cpu.keep_memory()
        processes.introduce(parent)
        if unused := tpu_presence.missed():
            print(unused, flush=True)
        result = loop.train_and_evaluate(config, FLAGS.workdir)
        if jax.process_index() == 0:
            print(tables.json_line(result.summary), flush=True)
    return preemption.EXIT_STATUS if result.preempted else 0


if __name__ == "__main__":
    run_command(main)
