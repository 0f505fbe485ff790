"""What documents and helps say of a method, said once: by the class, in the method's own file.

Tested in tests/reduction/method_table_test.py.
"""

import dataclasses

# Whether weights must have been trained with the method.
NOT_NEEDED, OPTIONAL, NEEDED = "not needed", "with or without", "needed"
TRAINING = (NOT_NEEDED, OPTIONAL, NEEDED)


@dataclasses.dataclass(frozen=True)
class Card:
    """One row of the table of methods; texts are phrases without a full stop.

    Attributes:
      title: what its paper calls it.
      paper: the paper's number at arXiv.
      summary: what it does to the tokens.
      training: one of `TRAINING`.
      score: what decides which tokens stay, or which merge.
      fused_attention: "yes" where every block may run attention as one kernel in inference, "no"
        where none that reduces may, else how long it may, or under what condition.
      in_pyramids: in which of the networks that subsample their tokens it runs; empty for "no"
        where the class has `not_in_pyramids`, else for "yes".
      equal_to: the repositories, OWNER/NAME, that its outputs were compared with.
      notes: the licences of these, and patents.
      untrained: settings without which a method of optional training needs it.
    """

    title: str
    paper: str
    summary: str
    training: str
    score: str
    fused_attention: str = "yes"
    in_pyramids: str = ""
    equal_to: tuple[str, ...] = ()
    notes: str = ""
    untrained: str = ""
