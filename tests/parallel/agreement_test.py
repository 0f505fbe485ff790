"""What processes agree on; with one process here, with several in `multiprocess_test`."""

import numpy as np
import pytest

from evovit_jax.errors import UserError
from evovit_jax.parallel import agreement


@pytest.fixture
def three(monkeypatch):
    """Three processes, of which this is the second; JAX's collectives are played by `answers`."""
    answers = []
    monkeypatch.setattr(agreement.jax, "process_count", lambda: 3)

    def gathered(value):
        rows = answers.pop(0)
        if np.ndim(value) == 0:
            return np.array(rows)
        return np.stack([[*row, *[32] * (value.size - row.size)] for row in rows])

    monkeypatch.setattr(agreement.multihost_utils, "process_allgather", gathered)
    monkeypatch.setattr(
        agreement.multihost_utils, "broadcast_one_to_all", lambda value: gathered(value)[0]
    )

    def play(*texts):
        answers.append([len(text) for text in texts])
        answers.append([np.frombuffer(text.encode(), np.uint8) for text in texts])

    return play


def test_alone_everything_is_as_it_was():
    assert agreement.gather({"a": [1, None]}) == [{"a": [1, None]}]
    assert agreement.from_first("x") == "x"
    agreement.refuse_differing({"seed": 1, "sizes": (1, 2)})
    with pytest.raises(UserError, match=r"^no$"), agreement.all_or_none():
        raise UserError("no")


def test_values_of_all(three):
    three("null", '"longer"', "[1]")
    assert agreement.gather("longer") == [None, "longer", [1]]


def test_the_first_decides(three):
    three('"a longer answer"')
    assert agreement.from_first(1) == "a longer answer"


def test_an_error_of_one_is_raised_on_all(three):
    three("null", "null", '"disk full"')
    with pytest.raises(UserError, match=r"^process 2 of 3: disk full$"), agreement.all_or_none():
        pass


def test_other_errors_are_left_alone():
    with pytest.raises(KeyError), agreement.all_or_none():
        raise KeyError("a bug")


def test_what_differs_is_named(three):
    three('{"seed": 0, "rate": 0.1}')
    three("null", '"this one"', "null")
    with pytest.raises(UserError, match=r"rate is 0\.5 on host .* and 0\.1 in process 0"):
        agreement.refuse_differing({"seed": 0, "rate": 0.5})
