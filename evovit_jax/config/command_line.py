"""A recipe from its file or by its name, and from a command's flags."""

import difflib
import pathlib
import re
import runpy
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from evovit_jax.config import durations
from evovit_jax.config.fields import field_names, value_of
from evovit_jax.data.stored_files import read_regular
from evovit_jax.errors import UserError, some

# A flag that changes a field: --config.batch_size=128.
OVERRIDE = re.compile(r"--?config\.([\w.\[\]]+)(?:=|$)")
# The flag that names the recipe: --config=configs/x.py:smoke.
CONFIG = re.compile(r"--?config=(.*)")
MOST_RECIPE = 1 << 20  # bytes


def recipes() -> dict[str, pathlib.Path]:
    """The files of this package's recipes by their names.

    They are inside of the package where it is installed, and beside it in a checkout.
    """
    package = pathlib.Path(__file__).parents[1]
    folder = package / "configs"
    folder = folder if folder.is_dir() else package.with_name("configs")
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def with_file(spec: str) -> str:
    """`NAME` or `NAME:VARIANT` with the file of the recipe of that name; a file goes first."""
    name, colon, variant = spec.partition(":")
    file = recipes().get(name)
    return spec if file is None or pathlib.Path(name).is_file() else f"{file}{colon}{variant}"


def load(spec: str) -> ConfigDict:
    """The recipe `FILE.py`, `FILE.py:VARIANT`, or one of this package by its name, as `deit_s_evo`.

    Raises:
      UserError: there is no such file, it cannot be run (with the line of it that fails), or it has
        no such variant.
    """
    path, _, variant = with_file(spec).partition(":")
    try:
        read_regular(path, MOST_RECIPE)
    except FileNotFoundError:
        raise UserError(f"there is no config file {path!r}; {_recipe_hint(path)}") from None
    except OSError as error:
        raise UserError(f"config file {path!r} cannot be read: {error}") from None
    try:
        return runpy.run_path(path)["get_config"](variant)
    except UserError:
        raise
    except Exception as error:  # whatever the recipe's own code raises
        calls = traceback.extract_tb(error.__traceback__)
        lines = [f" line {call.lineno}" for call in calls if call.filename == path]
        raise UserError(f"config {path}{''.join(lines[-1:])}: {_one_line(error)}") from error


def from_flags(
    values: flags.FlagValues, argv: Sequence[str], required: Sequence[str]
) -> ConfigDict:
    """Parses a command's flags; returns the recipe of `--config` with what is overridden.

    A duration given on the command line replaces its siblings.

    Raises:
      UserError: an unknown flag, field, file or variant, a value of another type, or a flag of
        `required` that is not given.
    """
    overrides = [flag[1] for flag in map(OVERRIDE.match, argv) if flag]
    argv = _with_files(argv)
    # Loaded here first, for ml_collections reports what is wrong with a recipe as a traceback.
    for spec in (flag[1] for flag in map(CONFIG.match, argv) if flag):
        recipe = load(spec)
        known = field_names(recipe)
        for field in overrides:
            name, bracket, _ = field.partition("[")
            if name not in known:
                raise UserError(f"unknown field config.{field}; {_field_hint(field, known)}")
            if bracket:  # tuples, which have no members to assign to
                value = f"{value_of(recipe, name)}".replace(" ", "")
                raise UserError(f'config.{name} is given whole: --config.{name}="{value}"')
    try:
        values(argv)
        for name in required:
            if not values[name].present:
                raise UserError(f"--{name} is required; --help shows all flags")
        config = values.config
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        raise UserError(_one_line(error)) from error
    durations.settle(config, overrides)
    return config


def _with_files(argv: Sequence[str]) -> list[str]:
    """A command line with files for names of recipes: `--config=NAME` and `--config NAME`."""
    words = []
    for word in argv:
        if words and words[-1] in ("--config", "-config"):
            words[-1] = f"--config={with_file(word)}"
        elif flag := CONFIG.fullmatch(word):
            words.append(f"--config={with_file(flag[1])}")
        else:
            words.append(word)
    return words


def _recipe_hint(path: str) -> str:
    known = recipes()
    close = difflib.get_close_matches(pathlib.Path(path).stem, known, n=5)
    return f"recipes of this package by name: {', '.join(close) or some(known)}"


def _one_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())


def _field_hint(field: str, known: list[str]) -> str:
    ends = {name.split(".")[-1]: name for name in known}
    # The right group first; then the right name in another group.
    close = difflib.get_close_matches(field, known, n=1)
    close = close or [
        ends[end] for end in difflib.get_close_matches(field.split(".")[-1], ends, n=1)
    ]
    return f"did you mean config.{close[0]}?" if close else f"the groups: {_groups(known)}"


def _groups(known: list[str]) -> str:
    return ", ".join(sorted({name.split(".")[0] for name in known if "." in name}))
