"""The table of the models, printed and written into a file."""

import pytest

from evovit_jax.errors import UserError
from evovit_jax.models.__main__ import BEGIN, END, main


def test_the_table_is_put_between_the_marks(tmp_path, capsys):
    path = tmp_path / "models.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["deit_tiny_patch16_224", f"--write={path}"]) == 0
    lines = path.read_text().splitlines()
    assert [lines[0], lines[1], lines[-2], lines[-1]] == ["before", BEGIN, END, "after"]
    assert lines[2].startswith("| model | image | parameters, M |")
    assert lines[3] == "| --- | ---: | ---: | ---: | ---: | --- |"
    assert lines[4].startswith("| `deit_tiny_patch16_224` | 224 | 5.72 | ")
    assert len(lines) == 7
    assert capsys.readouterr().out == f"wrote {path}\n"


def test_what_cannot_be_shown_or_written_is_named(tmp_path):
    with pytest.raises(UserError, match="no model matches 'nobody'"):
        main(["nobody"])
    (tmp_path / "x.md").write_text("no marks")
    with pytest.raises(UserError, match="has no lines <!-- models -->"):
        main(["deit_tiny_patch16_224", f"--write={tmp_path / 'x.md'}"])
