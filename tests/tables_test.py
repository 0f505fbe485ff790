"""Tables in Markdown, and lines of JSON."""

import json

import pytest

from evovit_jax import tables


def test_a_line_each_under_the_titles():
    table = tables.markdown({"a": 1, "b": 2}, [[1, "x"], (2.5, None)])
    assert table == "| a | b |\n|---|---|\n| 1 | x |\n| 2.5 | None |"


def test_columns_to_the_right():
    table = tables.markdown(["a", "b"], [], ["---", "---:"])
    assert table == "| a | b |\n| --- | ---: |"


def test_a_bar_does_not_end_a_cell():
    assert tables.markdown(["a"], [["`x|y`"], [r"x\|y"]]).splitlines()[2:] == [
        r"| `x\|y` |",
        r"| x\|y |",
    ]


def test_json_has_no_nan():
    value = {"a": float("nan"), "b": [1.5, (float("inf"), -float("inf"))], "c": "NaN", "d": None}
    found = tables.json_line(value)
    assert json.loads(found) == {"a": None, "b": [1.5, [None, None]], "c": "NaN", "d": None}
    assert "\n" not in found


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("imagenet_compatible_500", "imagenet_compatible_500"),
        ("<img src=x>", "&lt;img src=x\\>"),
        ("a|b", r"a\|b"),
        ("**x** _y_ `z`", r"\*\*x\*\* \_y\_ \`z\`"),
        ("[x](y) & $1$", r"\[x\](y) &amp; \$1\$"),
    ],
)
def test_a_name_is_no_markdown(name, shown):
    assert tables.plain_text(name) == shown


def test_a_cell_shows_values_of_a_row_in_a_form():
    shown = tables.cell("{:.1f} to {:.1f}", "low", "high", none="-")
    assert shown({"low": 0.04, "high": 2}) == "0.0 to 2.0"
    assert shown({"low": None, "high": 2}) == shown({"low": 1}) == "-"
    assert tables.cell("`{}`", "name")({}) == ""
