"""Tables in Markdown."""

from evovit_jax import tables


def test_a_line_each_under_the_titles():
    table = tables.markdown({"a": 1, "b": 2}, [[1, "x"], (2.5, None)])
    assert table == "| a | b |\n|---|---|\n| 1 | x |\n| 2.5 | None |"


def test_columns_to_the_right():
    table = tables.markdown(["a", "b"], [], ["---", "---:"])
    assert table == "| a | b |\n| --- | ---: |"
