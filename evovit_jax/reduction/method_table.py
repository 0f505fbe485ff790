"""What documents and `--reduction` say of the methods, from the card of each."""

import textwrap

from evovit_jax import tables
from evovit_jax.reduction import METHODS, reducer_class
from evovit_jax.reduction.card import NEEDED

HEADER = (
    "`--reduction`",
    "paper",
    "what it does",
    "training",
    "by what",
    "fused attention",
    "in pyramids",
    "compared with",
    "licence of that, patents",
)
WIDTH = 100  # characters of a line of the list


def row(name: str) -> tuple[str, ...]:
    """The cells of one method."""
    card = reducer_class(name).card
    training = card.training
    if card.untrained:
        training = f"needed without `{card.untrained}`"
    runs = "no" if reducer_class(name, in_pyramid=True).not_in_pyramids else "yes"
    links = [f"[{where}](https://github.com/{where})" for where in card.equal_to]
    return (
        f"`{name}`",
        f"[{card.title}](https://arxiv.org/abs/{card.paper})",
        card.summary,
        training,
        card.score,
        card.fused_attention,
        card.in_pyramids or runs,
        ", ".join(links),
        card.notes,
    )


def by_training() -> tuple[list[str], list[str]]:
    """The methods that run on any weights, and those whose weights must be trained with them."""
    names = [name for name in METHODS if name != "none"]
    needed = [name for name in names if reducer_class(name).card.training == NEEDED]
    return [name for name in names if name not in needed], needed


def table() -> str:
    """The table of all methods in Markdown."""
    names = ["none", *(name for names in by_training() for name in names)]
    return tables.markdown(HEADER, map(row, names), ["---"] * len(HEADER))


def listing() -> str:
    """The names of all methods in Markdown, as two items of a list."""
    items = ("Without training, or with it", "Trained")
    lines = []
    for item, names in zip(items, by_training(), strict=True):
        titles = ", ".join(reducer_class(name).card.title for name in names)
        text = f"- {item}: {titles}."
        lines.append(
            textwrap.fill(
                text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
        )
    return "\n".join(lines)


def words() -> str:
    """The names of all methods for the help of a flag."""
    free, needed = map(", ".join, by_training())
    return f"on any weights none, {free}; on weights trained with it {needed}"
