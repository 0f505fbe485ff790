"""The figure of a study of kept tokens: agreement of methods, stability, attention and objects.

Tested in tests/benchmarking/token_study_test.py.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]

# Okabe and Ito's colours, which colour-blind people tell apart; in grey the markers and dashes do.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, DASHES = "osD^vP*X<", ("-", "--", "-.", ":")
MOST_NUMBERS = 12  # reductions up to which the matrices have numbers in them


def draw(report: dict[str, Any], title: str, path: pathlib.Path) -> None:
    """Writes the figure of `token_report.report_of`.

    Above, matrices of the reductions: agreement, and rank correlation. Below, stability, and what
    the tokens of each block hold of class attention and of the objects, in multiples of what tokens
    at random would.
    """
    from matplotlib.figure import Figure

    rows = report["rows"]
    kinds = [kind for kind in ("attention", "object") if _any(rows, kind)]
    figure = Figure(figsize=(12, 5.6 + 0.5 * len(rows)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.1 + 0.08 * len(rows), 1))
    left, right = upper.subplots(1, 2)
    matrix(left, rows, "iou", "IoU of kept tokens, last block (by chance)")
    matrix(right, rows, "rank", "rank correlation of how long patches live")
    axes = lower.subplots(1, 1 + len(kinds), squeeze=False)[0]
    stability(axes[0], rows)
    for axis, kind in zip(axes[1:], kinds, strict=True):
        by_block(axis, report, kind)
    if kinds:
        shown = axes[1].get_legend_handles_labels()
        lower.legend(*shown, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, parse_math=False)  # a folder's name is no formula
    figure.savefig(path, dpi=100)


def matrix(axis: Any, rows: Sequence[Row], key: str, title: str) -> None:
    """A quantity of every two reductions, as shades and as numbers."""
    values = np.array([[np.nan if x is None else x for x in row[key]] for row in rows], float)
    axis.imshow(values, cmap="cividis", vmin=min(0.0, _least(values)), vmax=1)
    for i, row in enumerate(rows if len(rows) <= MOST_NUMBERS else ()):
        for j, value in enumerate(row[key]):
            if value is not None:
                shown = f"{value:.2f}"
                if key == "iou":
                    shown += f"\n({row['iou_chance'][j]:.2f})"
                dark = "black" if value > 0.6 else "white"
                axis.text(j, i, shown, ha="center", va="center", color=dark, fontsize=7.5)
    names = [f"{i}  {row['reduction']}" for i, row in enumerate(rows, start=1)]
    axis.set_xticks(range(len(rows)), [str(i + 1) for i in range(len(rows))])
    axis.set_yticks(range(len(rows)), names, fontsize=8, parse_math=False)
    axis.set_title(title, fontsize=10)


def stability(axis: Any, rows: Sequence[Row]) -> None:
    """Agreement with other views of the image, filled; what chance gives, hollow."""
    places = np.arange(len(rows))
    views = (("flip", "flipped", "o", -0.15), ("shift", "moved by a patch", "s", 0.15))
    for number, (key, name, marker, offset) in enumerate(views):
        style = {"marker": marker, "ls": "", "color": COLOURS[number]}
        found, chance = (
            [np.nan if row[k] is None else row[k] for row in rows] for k in (key, f"{key}_chance")
        )
        axis.plot(found, places + offset, label=name, **style)
        axis.plot(chance, places + offset, mfc="white", label=f"{name}, by chance", **style)
    axis.set_yticks(places, [str(i + 1) for i in places])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.03)
    axis.grid(alpha=0.3)
    axis.set_title("IoU with another view, last block", fontsize=10)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def by_block(axis: Any, report: dict[str, Any], kind: str) -> None:
    """What a token of each block holds, over what it would at random: 1 is chance."""
    for i, row in enumerate(report["rows"]):
        found, tokens = row["by_block"][kind], row["by_block"]["tokens"]
        blocks = range(len(found))
        by_chance = (
            [count / report["patches"] for count in tokens]
            if kind == "attention"
            else [row["covered"]] * len(found)
        )
        ratio = [
            np.nan if x is None or not chance else x / chance
            for x, chance in zip(found, by_chance, strict=True)
        ]
        axis.plot(
            blocks,
            ratio,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            ls=DASHES[i % len(DASHES)],
            ms=4,
            label=f"{i + 1}  {row['reduction']}",
        )
    axis.axhline(1, color="black", lw=0.8)
    names = {
        "attention": "attention on kept tokens (by chance: 1)",
        "object": "tokens on the object (by chance: 1)",
    }
    axis.set_title(names[kind], fontsize=10)
    axis.set_xlabel("block")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def _any(rows: Sequence[Row], key: str) -> bool:
    return any(row[key] is not None for row in rows)


def _least(values: np.ndarray) -> float:
    return float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
