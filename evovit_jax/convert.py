"""Converts weights: PyTorch's files to an export of this library, and back.

python -m evovit_jax.convert --model=deit_small_patch16_224 --input=FILE.pth --output=DIR
python -m evovit_jax.convert --model=deit_small_patch16_224 --input=DIR --output=FILE.safetensors

The input is a .pth, .safetensors or .npz file, hf://OWNER/REPOSITORY, an export, or a training
run's work directory (which knows its own model). The output's suffix says what is written:
.pth, .safetensors and .npz are PyTorch's tensors, anything else is a directory. Every tensor is
accounted for; gaps and leftovers end the conversion, and nothing is written.
"""

import argparse
from collections.abc import Sequence

from evovit_jax import tables
from evovit_jax.errors import Parser, UserError, run_command
from evovit_jax.hardware import limits
from evovit_jax.inference.ready_model import prepare
from evovit_jax.models.batch_norm import fuse
from evovit_jax.models.variables import variables
from evovit_jax.weights import save_weights
from evovit_jax.weights.families import find_family
from evovit_jax.weights.files import SUFFIXES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Raises:
      UserError: bad flags, an input that is damaged or does not fit, a place that is not free.
    """
    flags = _parser().parse_args(arguments)
    limits.check()
    if not flags.input or not flags.output:
        raise UserError("--input and --output must not be empty")
    prepared = prepare(
        flags.model,
        flags.input,
        flags.reduction,
        allow_missing=flags.allow_missing,
        allow_nonfinite=flags.allow_nonfinite,
        image_size=flags.image_size,
        num_classes=flags.num_classes,
    )
    for note in prepared.notes:
        print(f"{flags.input}: {note}", flush=True)
    find_family(prepared.model, flags.family)  # refuses a wrong one before anything is written
    model = fuse(prepared.model) if flags.fuse else prepared.model
    save_weights(model, flags.output, family=flags.family)
    is_file = flags.output.endswith(SUFFIXES)
    names = f"names of {find_family(model, flags.family).name}" if is_file else "an export"
    held = variables(model).values()
    count = sum(variable.size for variable in held)
    print(f"wrote {prepared.name}, {count:,} values, to {flags.output} ({names})", flush=True)
    if flags.json:
        paths = {"model": prepared.name, "input": flags.input, "output": flags.output}
        counts = {"variables": len(held), "values": count}
        print(tables.json_line({**paths, **counts, "notes": prepared.notes}), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m evovit_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="a name of evovit_jax.list_models()")
    parser.add_argument("--input", required=True, help="a weight file, hf://NAME, or a directory")
    parser.add_argument("--output", required=True, help="a weight file or a directory")
    parser.add_argument("--family", help="whose names to write, such as timm, levit, google")
    parser.add_argument("--reduction", help="such as dynamicvit, for weights with its parameters")
    parser.add_argument("--image_size", type=int, help="pixels; positions are interpolated")
    parser.add_argument("--num_classes", type=int, help="of the head (default: the model's own)")
    parser.add_argument(
        "--allow_missing", action="store_true", help="convert although there are gaps or leftovers"
    )
    parser.add_argument(
        "--allow_nonfinite", action="store_true", help="convert values that are NaN or Inf"
    )
    parser.add_argument("--fuse", action="store_true", help="fold batch norm into other layers")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


if __name__ == "__main__":
    run_command(main)
