"""Errors that a user can mend: a line, a status, a hint."""

import pytest

from evovit_jax import errors


def test_a_user_error_ends_a_command_with_one_line(capsys):
    def main():
        raise errors.UserError("batch_size=0 must be at least 1")

    with pytest.raises(SystemExit) as end:
        errors.run_command(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: batch_size=0 must be at least 1\n"


def test_the_status_of_a_command_is_what_it_returns():
    with pytest.raises(SystemExit) as end:
        errors.run_command(lambda: 143)
    assert end.value.code == 143


def test_a_misspelt_name_gets_the_closest_one_else_all():
    assert errors.suggestion("evitt", ["evit", "tome"]) == "did you mean 'evit'?"
    assert errors.suggestion("xyz", ["tome", "evit"]) == "known: evit, tome"


def test_a_long_list_is_cut():
    assert errors.some(["a", "b"]) == "a, b"
    assert errors.some("abcdefgh", 3) == "a, b, c and 5 more"


def test_the_first_line_of_an_error():
    assert errors.first_line(ValueError("one\ntwo")) == "one"
    assert errors.first_line(ValueError("x" * 200), 10) == "x" * 10
    assert errors.first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
