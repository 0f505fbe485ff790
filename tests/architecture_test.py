"""The house: who may import whom, how long files are, where tests are, and pictures that are true.

Also tests docs/draw_architecture.py.
"""

import ast
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from evovit_jax.reduction import Reducer

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "evovit_jax"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
DOORS = {
    "main", "evaluate", "predict", "compare", "benchmark", "visualize", "analyze", "convert",
    "calibrate", "export",
}  # fmt: skip


def load_drawing():
    spec = importlib.util.spec_from_file_location("drawing", ROOT / "docs/draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_imports_go_down_only():
    command = [pathlib.Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_contract_names_every_room():
    """`exhaustive` makes the contract fail for a room that it does not name; so does this."""
    named = {name for layer in load_drawing().layers() for name in layer}
    there = {path.stem for path in PACKAGE.glob("*.py")} | {p.parent.name for p in MODULES[1:]}
    assert named == (there - {"__init__", "names", ""})


def test_the_hall_holds_the_doors_and_little_else():
    others = {path.stem for path in PACKAGE.glob("*.py")} - DOORS
    assert len(others) <= 5, others


def test_files_and_functions_are_short():
    long = []
    for path in MODULES:
        text = (PACKAGE / path).read_text()
        is_door = path.stem in DOORS and len(path.parts) == 1
        if len(text.splitlines()) > (100 if is_door else 400):
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{path}: {node.name}")
    assert long == []


def test_every_module_has_a_test_file():
    """Of its name in the same room, or the one that its docstring names (`tests/...`)."""
    untested = []
    for path in MODULES:
        docstring = ast.get_docstring(ast.parse((PACKAGE / path).read_text())) or ""
        named = re.findall(r"tests/[\w/]+_test\.py", docstring)
        own = ROOT / "tests" / path.with_name(f"{path.stem}_test.py")
        tested = own.is_file() or any((ROOT / name).is_file() for name in named)
        if not tested and path.name != "__init__.py":
            untested.append(str(path))
    assert untested == []


@pytest.mark.parametrize("name", ["architecture.svg", "reducer.svg"])
def test_the_pictures_are_drawn_anew(name):
    drawn = load_drawing().PICTURES[name]()
    again = "draw it again: python docs/draw_architecture.py"
    assert (ROOT / "docs" / name).read_text() == drawn, again


def test_the_hooks_in_the_picture_exist():
    text = load_drawing().life()
    for hook in ("start", "before_block", "attention_request", "after_attention", "after_block"):
        assert hook in text
        assert callable(getattr(Reducer, hook))
