"""A training that survives whatever happens to it, with the bits that it would have had.

Also tests campaign.py, faulty_run.py and kinds_of_fault.py.
"""

import pytest

from faults import campaign
from faults.kinds_of_fault import FAULTS


def test_every_kind_of_fault_is_drawn_and_a_seed_says_in_which_order():
    drawn = campaign.drawn(50, 3, True)
    assert len(drawn) == 50
    assert set(drawn) == set(FAULTS)
    assert drawn == campaign.drawn(50, 3, True)
    assert drawn != campaign.drawn(50, 4, True)
    assert not any(kind.fills for kind in campaign.drawn(50, 3, False))


def test_the_table_counts_what_was_recovered():
    outcomes = [campaign.Outcome("a", 2, ""), campaign.Outcome("a", 5, "no")]
    rows = campaign.table([*outcomes, campaign.Outcome("b", 0, "")]).splitlines()[2:]
    assert rows == [
        "| a | 2 | 1 | 3.5 | 5 |",
        "| b | 1 | 1 | 0.0 | 0 |",
        "| all | 3 | 2 | 2.3 | 5 |",
    ]


@pytest.mark.slow
def test_one_fault_of_each_kind_changes_no_bit(tmp_path):
    outcomes = campaign.run_campaign(tmp_path, len(FAULTS), 5, 12 * len(FAULTS))
    assert [outcome for outcome in outcomes if outcome.problem] == []
