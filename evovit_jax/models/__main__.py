"""The table of all models: parameters, multiply-adds, published accuracy, where the weights are.

python -m evovit_jax.models [PATTERN]
python -m evovit_jax.models --write=docs/models.md
"""

import argparse
import functools
import math
from typing import Any

from flax import nnx

from evovit_jax import tables
from evovit_jax.errors import Parser, UserError, run_command
from evovit_jax.flops import gmacs
from evovit_jax.hardware.platforms import compiling_for
from evovit_jax.models import list_models, model_entry
from evovit_jax.models.registry import InitKeys
from evovit_jax.models.variables import Skeleton

# Between these two lines of a file the table is written.
BEGIN, END = "<!-- models -->", "<!-- end of models -->"
HEADER = ("model", "image", "parameters, M", "GMACs", "top-1, %", "weights")


@functools.cache
def counted(
    model: type, settings: tuple[tuple[str, Any], ...], reduction: str
) -> tuple[int, float]:
    """Parameters and GMACs of a model; rows that differ in their weights alone are counted once."""
    config = model.Config(**dict(settings))
    # What a TPU computes in another way is not traced beside it.
    with compiling_for("cpu"):
        made = nnx.eval_shape(lambda: model(config, reduction, rngs=InitKeys(0)))
        cost = gmacs(made)
    sizes = (math.prod(value.shape) for value in Skeleton.variables(made)[0].values())
    return sum(sizes), cost


def row(name: str) -> tuple[str, ...]:
    """The cells of one model."""
    entry = model_entry(name)
    parameters, cost = counted(entry.model, tuple(sorted(entry.settings.items())), entry.reduction)
    where = f"[file]({entry.weights})" if entry.weights.startswith("http") else entry.weights
    if where.startswith("hf://"):
        where = f"`{where}`"
    return (
        f"`{name}`",
        str(entry.transform.image_size),
        f"{parameters / 1e6:.2f}",
        f"{cost:.3f}",
        "" if entry.top1 is None else f"{entry.top1:.1f}",
        where,
    )


def table(pattern: str = "*") -> str:
    """The table in Markdown.

    Raises:
      UserError: no name matches.
    """
    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}")
    return tables.markdown(HEADER, map(row, names), ("---", *["---:"] * 4, "---"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: no name matches, or the file has no place for the table.
    """
    parser = Parser(
        prog="python -m evovit_jax.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pattern", nargs="?", default="*", help="of names, such as 'evo_*'")
    parser.add_argument("--write", metavar="FILE", help="put the table between the marks of a file")
    flags = parser.parse_args(arguments)
    text = table(flags.pattern)
    if flags.write is None:
        print(text)
        return 0
    tables.write_between(flags.write, BEGIN, END, text)
    print(f"wrote {flags.write}")
    return 0


if __name__ == "__main__":
    run_command(main)
