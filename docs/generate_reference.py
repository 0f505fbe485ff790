"""Writes the pages of every flag and field: `python docs/generate_reference.py FOLDER`.

commands.md has the flags of all commands, config.md the fields of a run, reductions.md those of
each method. They are read from the code whenever the site is built, and kept nowhere else.
Tested in tests/site_test.py.
"""

import argparse
import dataclasses
import importlib
import inspect
import pathlib
import re
import sys
import textwrap
import tomllib
from types import ModuleType
from unittest import mock

from absl import flags as absl_flags

from evovit_jax import reduction, tables
from evovit_jax.config import durations, field_names, fields, get_config

ROOT = pathlib.Path(__file__).parents[1]
# Commands that are a room's own, beside the doors.
TABLES = ("models.__main__", "reduction.__main__")
HEADER = ("flag", "value", "default", "meaning")


class Parsing(Exception):
    """Raised with a command's parser in the place of its parsing."""


def doors() -> list[str]:
    """The names of the commands, from the first layer of the import contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return [name.strip() for name in contract["layers"][0].split("|")]


def parser_of(command: ModuleType) -> argparse.ArgumentParser:
    """The parser of a command, as it is when the command's `main` parses with it."""

    def instead(parser, *_):
        raise Parsing(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", instead):
        try:
            command.main([])
        except Parsing as found:
            return found.args[0]
    raise ValueError(f"{command.__name__}.main parses no flags")


def flag_row(action: argparse.Action) -> tuple[str, ...]:
    """The cells of a flag of argparse."""
    name = ", ".join(action.option_strings) or action.metavar or action.dest
    value = action.type.__name__ if action.type else "text"
    if action.choices:
        value = ", ".join(f"`{choice}`" for choice in action.choices)
    if action.nargs == 0:
        value = "none"
    default = "" if action.default in (None, "", False) else f"`{action.default}`"
    needed = action.required and action.default is None
    meaning = tables.plain_text((action.help or "").replace("%%", "%"))
    return f"`{name}`", value, "required" if needed else default, meaning


def absl_row(flag: absl_flags.Flag) -> tuple[str, ...]:
    """The cells of a flag of absl."""
    value = {"bool": "none", "string": "text"}.get(flag.flag_type(), flag.flag_type())
    default = "" if flag.default in (None, "", False) else f"`{flag.default}`"
    return f"`--{flag.name}`", value, default, tables.plain_text(flag.help)


def described(docstring: str) -> str:
    """A module's docstring in Markdown: lines that are commands become blocks of code."""
    parts = []
    for part in inspect.cleandoc(docstring).split("\n\n"):
        is_command = part.startswith("python -m")
        parts.append(f"```bash\n{part}\n```" if is_command else part)
    return "\n\n".join(parts)


def commands() -> str:
    """Every flag of every command, in Markdown."""
    parts = ["# Commands", "Every flag of every command, as `--help` shows them."]
    for name in [*doors(), *TABLES]:
        module = importlib.import_module(f"evovit_jax.{name}")
        if name == "main":
            known = absl_flags.FLAGS.flags_by_module_dict()[module.__name__]
            rows = [absl_row(flag) for flag in known]
        else:
            actions = parser_of(module)._actions
            rows = [flag_row(action) for action in actions if action.dest != "help"]
        title = name.removesuffix(".__main__")
        table = tables.markdown(HEADER, rows)
        parts += [f"## evovit_jax.{title}", described(module.__doc__), table]
    return "\n\n".join(parts) + "\n"


def meanings() -> dict[str, str]:
    """What each field of a run means, by its full name: its comment in config/fields.py.

    In the order of that file.
    """
    found, above, group = {}, [], ""
    for line in inspect.getsource(fields).splitlines():
        code, _, comment = line.strip().partition("  # ")
        if function := re.match(r"def (?:_(\w+)|get_config)\(", code):
            group = f"{function[1]}." if function[1] else ""
        field = re.match(r"c\.([\w.]+) = ", code)
        duration = re.match(r'_duration\(c, "(\w+)"', code)
        if code.startswith("# "):
            above += [code[2:]] if code[2:5] != "---" else []
            continue
        text = " ".join([*above, comment]).strip()
        if field:
            found[group + field[1]] = text
        if duration:
            found |= {f"{duration[1]}_{unit}": text for unit in durations.UNITS}
        above = []
    known = field_names(get_config())
    return {name: text for name, text in found.items() if name in known}


def config() -> str:
    """Every field of a run with its default, in Markdown."""
    defaults, groups = get_config(), {}
    for name, meaning in meanings().items():
        value = fields.value_of(defaults, name)
        shown = "" if value is None else f"`{value!r}`"
        groups.setdefault(name.rpartition(".")[0], []).append((f"`{name}`", shown, meaning))
    intro = "\n\n".join(inspect.getdoc(fields).split("\n\n")[1:])
    parts = ["# Fields of a run", "`--config.FIELD=VALUE` changes any of them.", intro]
    for group, rows in groups.items():
        table = tables.markdown(("field", "default", "meaning"), rows)
        parts += [f"## {group or 'The run'}", table]
    return "\n\n".join(parts) + "\n"


def attributes(cls: type) -> dict[str, str]:
    """What the fields of a class mean, from the docstrings of it and of its bases."""
    found = {}
    for base in reversed(cls.__mro__):
        _, _, listed = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        listed = textwrap.dedent(listed.split("\n\n")[0])
        for item in re.split(r"\n(?! )", listed):
            name, colon, text = item.partition(":")
            if colon:
                found |= dict.fromkeys(name.split(", "), " ".join(text.split()))
    return found


def reductions() -> str:
    """Every field of every method, in Markdown."""
    parts = [
        "# Fields of the methods",
        "`--reduction=METHOD,FIELD=VALUE,...`; several values of a field stand between colons, "
        "`locations=3:6:9`. What each method does: [Methods](../methods.md).",
    ]
    for name in reduction.list_reductions():
        cls = reduction.reducer_class(name)
        meaning = attributes(cls.Fields)
        rows = []
        for field in dataclasses.fields(cls.Fields):
            default = reduction.describe({"name": "", field.name: field.default}).partition("=")[2]
            rows.append((f"`{field.name}`", f"`{default}`", meaning[field.name]))
        title = f"[{cls.card.title}](https://arxiv.org/abs/{cls.card.paper}): {cls.card.summary}."
        table = tables.markdown(("field", "default", "meaning"), rows) if rows else "No fields."
        parts += [f"## {name}", title, table]
    return "\n\n".join(parts) + "\n"


PAGES = {"commands.md": commands, "config.md": config, "reductions.md": reductions}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (pathlib.Path(sys.argv[1]) / page).write_text(write())
