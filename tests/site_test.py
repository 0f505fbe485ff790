"""The site's generated pages say every flag and field, and its links lead somewhere.

Tests docs/generate_reference.py and docs/site_hooks.py; `mkdocs build --strict` builds all of it.
"""

import importlib
import pathlib
import re
import sys

import pytest

from evovit_jax import reduction
from evovit_jax.config import field_names, fields, get_config

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def reference():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("generate_reference")


@pytest.fixture
def hooks(reference):
    sys.modules.pop("site_hooks", None)
    return importlib.import_module("site_hooks")


def rows(text):
    """The rows of all tables but their headers, as lists of cells, under the title before them."""
    found, title = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("| `"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found.setdefault(title, []).append([cell.strip().replace("\\|", "|") for cell in cells])
    return found


def test_every_flag_of_every_command_is_there_with_its_meaning(reference):
    text = reference.commands()
    found = rows(text)
    assert list(found) == [
        f"evovit_jax.{name.removesuffix('.__main__')}"
        for name in [*reference.doors(), *reference.TABLES]
    ]
    flags = {title: {cells[0].strip("`"): cells for cells in part} for title, part in found.items()}
    assert {"--config", "--workdir", "--plan", "--hbm_gib"} <= flags["evovit_jax.main"].keys()
    for name in reference.doors():
        source = (DOCS.parent / "evovit_jax" / f"{name}.py").read_text()
        said = re.findall(r'(?:add|add_argument)\(\s*"--(\w+)"|DEFINE_\w+\(\s*"(\w+)"', source)
        written = {flag.removeprefix("--") for flag in flags[f"evovit_jax.{name}"]}
        assert {"".join(flag) for flag in said} <= written, name
    for title, part in found.items():
        for cells in part:
            assert len(cells) == 4, (title, cells)
            assert cells[3] or "`, `" in cells[1], (title, cells)  # a meaning, or choices
    assert flags["evovit_jax.evaluate"]["--data"][2] == "required"
    assert flags["evovit_jax.benchmark"]["--rounds"][1:3] == ["int", "`5`"]


def test_every_field_of_a_run_is_there_with_its_default_and_meaning(reference):
    defaults = get_config()
    cells = [row for part in rows(reference.config()).values() for row in part]
    assert sorted(row[0].strip("`") for row in cells) == sorted(field_names(defaults))
    for name, shown, meaning in cells:
        value = fields.value_of(defaults, name.strip("`"))
        assert shown == ("" if value is None else f"`{value!r}`")
        assert len(meaning) > 3, name
    meanings = reference.meanings()
    assert (
        meanings["batch_size"] == "examples an optimiser step, over all devices and micro-batches"
    )
    assert meanings["freeze_steps"] == meanings["freeze_epochs"]
    assert meanings["eval_data"].startswith("Likewise; ")


def test_every_field_of_every_method_is_there_with_its_meaning(reference):
    found = rows(reference.reductions())
    known = {
        name: list(reduction.reducer_class(name).Fields.__dataclass_fields__)
        for name in reduction.list_reductions()
    }
    assert {name: [row[0].strip("`") for row in found.get(name, [])] for name in known} == known
    assert ["`fuse`", "`true`", "whether the tokens that leave go on as one."] in found["evit"]
    assert all(len(row) == 3 and row[2] for part in found.values() for row in part)


def test_links_lead_to_the_same_files_in_the_checkout_and_in_the_site(hooks):
    places = {
        ("index.md", "methods.md"): "methods.md",
        ("howto/nan.md", "../methods.md"): "methods.md",
        ("reliability.md", "../evovit_jax/rules.py"): "files/evovit_jax/rules.py",
        ("contributing.md", "docs/architecture.md"): "architecture.md",
        ("use.md", "../CONTRIBUTING.md"): "contributing.md",
        ("contributing.md", "README.md"): "index.md",
        ("use.md", "../nothing.py"): "../nothing.py",
        ("index.md", "https://arxiv.org"): "https://arxiv.org",
    }
    assert {pair: hooks.place(*pair) for pair in places} == places

    class Page:
        class file:
            src_uri = "howto/nan.md"

    text = "[a](../../evovit_jax/rules.py) [b](../methods.md#x) f[0](x) | `a\\|b` |"
    expected = "[a](../files/evovit_jax/rules.py) [b](../methods.md#x) f[0](x) | `a|b` |"
    assert hooks.on_page_markdown(text, Page) == expected


def test_links_of_the_readme_and_the_documents_lead_to_files():
    for path in [*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", path.read_text()):
            made = path.parent.name == "howto" and link.startswith("../reference/")
            made = made or link.startswith("reference/")
            assert made or (path.parent / link).exists(), f"{path.name}: {link}"
