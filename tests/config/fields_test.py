"""The fields: declared once, read somewhere, refused by name."""

import ast
import pathlib

import evovit_jax
from evovit_jax import config as config_lib
from evovit_jax.config import durations
from evovit_jax.models.registry import model_table

PACKAGE = pathlib.Path(evovit_jax.__file__).parent


def sources():
    # Where fields are declared or shrunk they are not read.
    return [p for p in PACKAGE.rglob("*.py") if p.name not in ("fields.py", "variants.py")]


def read_names():
    """Attributes and strings of the package, and `x.y` for every attribute of an attribute."""
    names = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
                if isinstance(node.value, ast.Attribute):
                    names.add(f"{node.value.attr}.{node.attr}")
                elif isinstance(node.value, ast.Name):
                    names.add(f"{node.value.id}.{node.attr}")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


def test_every_field_has_a_reader():
    read = read_names()
    settings = {f for e in model_table().values() for f in e.model.Config.__dataclass_fields__}
    unread = []
    for field in config_lib.field_names(config_lib.get_config()):
        group, _, name = field.rpartition(".")
        name_of_duration, _, unit = name.rpartition("_")
        if unit in durations.UNITS and name_of_duration in durations.NAMES:
            found = name_of_duration in read
        elif group == "model" and name != "name":
            found = name in settings  # all of them are given to create_model
        elif name == "name":  # too common a word: with its group
            found = f"{group}.name" in read
        else:
            found = name in read or field in read
        if not found:
            unread.append(field)
    assert not unread


def test_every_field_is_explained():
    lines = (PACKAGE / "config" / "fields.py").read_text().splitlines()
    silent = []
    for i, line in enumerate(lines):
        text = line.strip()
        is_field = text.startswith(("c.", "_duration(c,")) and not text.startswith("c.update")
        group = text.endswith(("ConfigDict()", "_optim()", "_augment()", "_eval_transform()"))
        group = group or text.endswith(("_loss()", "_model()", "_distill()"))
        explained = "  # " in line or lines[i - 1].strip().startswith("#")
        if is_field and not group and not explained:
            silent.append(text)
    # What these mean is their name's meaning in every paper.
    assert silent == []
