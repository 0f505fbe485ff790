"""What a study of kept tokens found: as rows, as a Markdown table, as CSV and as JSON.

Tested in tests/benchmarking/token_study_test.py.
"""

import csv
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from evovit_jax import tables
from evovit_jax.benchmarking import token_figure
from evovit_jax.benchmarking.token_study import Study
from evovit_jax.errors import printable
from evovit_jax.inference import dense_attention, output_folder

Row = dict[str, Any]

ABOUT = """\
An agreement is the IoU of kept tokens in the last block, in brackets what chance gives at the same
counts: with the flipped image, with the crop moved by one patch, with the first block that reduces,
between weights (`-` where only one was given: in inference no method draws anything), and between
methods, by their numbers. Attention: the share of the dense network's class attention (of the score
in its place where there is no class token) that is on kept patches, in brackets the share of
tokens."""
ABOUT_OBJECTS = """\
Object: the share of the tokens that is on it; gain: that less the share of the image that it
covers, with its 95 % interval over the images."""


def rows_of(study: Study) -> list[Row]:
    """A row for each reduction; what there is not is None.

    Returns:
      `reduction`; `tokens` of the last block, `share` of the patches; `flip`, `shift`, `blocks` and
      `seeds`, agreements of the last block, each with its `..._chance`; `attention`, the share of
      class attention kept; `object`, `covered`, `gain`, `gain_low`, `gain_high`, and `objects`, of
      how many images; `iou`, `iou_chance` and `rank`, one for each reduction, None for itself;
      `by_block`, lists of `tokens`, `attention` and `object`.
    """
    return [_row(study, i) for i in range(len(study.models))]


def _row(study: Study, i: int) -> Row:
    means, patches = study.means, study.grid[0] * study.grid[1]
    tokens = means.mean(("tokens", i))
    row: Row = {"reduction": study.models[i].reduction, "tokens": round(float(tokens[-1]), 2)}
    row["share"] = round(float(tokens[-1]) / patches, 4)
    for name in ("flip", "shift", "blocks", "seeds"):
        row[name] = _last(study, (name, i))
        row[f"{name}_chance"] = _last(study, (f"{name} chance", i))
    row["attention"] = _last(study, ("attention", i))
    row |= dict.fromkeys(("object", "covered", "gain", "gain_low", "gain_high", "objects"))
    if ("covered",) in means and means.count(("covered",)):
        row |= {"object": _last(study, ("object", i)), "covered": _last(study, ("covered",))}
        row["gain"], row["objects"] = _last(study, ("gain", i)), means.count(("covered",))
        row["gain_low"], row["gain_high"] = (round(x, 4) for x in means.interval(("gain", i)))
    for key, name in (("iou", "iou"), ("iou_chance", "iou chance"), ("rank", "rank")):
        others = range(len(study.models))
        row[key] = [_last(study, (name, *sorted((i, j)))) if i != j else None for j in others]
    row["by_block"] = {
        name: [_rounded(x) for x in means.mean((name, i))]
        for name in ("tokens", "attention", "object")
        if (name, i) in means
    }
    return row


def _last(study: Study, name: tuple) -> float | None:
    """The mean of a quantity in the last block; None where no image has it."""
    return _rounded(study.means.mean(name).reshape(-1)[-1]) if name in study.means else None


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def report_of(study: Study, data: str) -> dict[str, Any]:
    """What is written and printed as JSON: the rows, and what they are of."""
    first = study.models[0]
    return {
        "model": first.name,
        "data": data,
        "examples": study.means.count(("tokens", 0)),
        "weights": study.weights,
        "patches": study.grid[0] * study.grid[1],
        "attention": dense_attention.score_name(first.model),
        "rows": rows_of(study),
    }


COLUMNS: dict[str, Callable[[Row], str]] = {
    "reduction": tables.cell("`{}`", "reduction"),
    "tokens": tables.cell("{:.0f}", "tokens"),
    "flip": tables.cell("{:.2f} ({:.2f})", "flip", "flip_chance"),
    "move": tables.cell("{:.2f} ({:.2f})", "shift", "shift_chance"),
    "first block": tables.cell("{:.2f} ({:.2f})", "blocks", "blocks_chance", none="-"),
    "weights": tables.cell("{:.2f} ({:.2f})", "seeds", "seeds_chance", none="-"),
    "attention": tables.cell("{:.1%} ({:.1%})", "attention", "share"),
    "object": tables.cell("{:.1%}", "object"),
    "gain": tables.cell("{:+.1%} ({:+.1%} to {:+.1%})", "gain", "gain_low", "gain_high"),
}


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown; columns that are empty in all of them are left out."""
    cells = {"": [str(i + 1) for i in range(len(rows))]}
    cells |= {title: [cell(row) for row in rows] for title, cell in COLUMNS.items()}
    for j in range(len(rows) if len(rows) > 1 else 0):
        cells[f"IoU with {j + 1}"] = [
            "" if row["iou"][j] is None else f"{row['iou'][j]:.2f} ({row['iou_chance'][j]:.2f})"
            for row in rows
        ]
    cells = {title: column for title, column in cells.items() if any(column)}
    rule = ["---:", "---"] + ["---:"] * (len(cells) - 2)
    return tables.markdown(cells, zip(*cells.values(), strict=True), rule)


def title_of(report: dict[str, Any]) -> str:
    """What the figures are of; a table that is shown around needs no path."""
    seen = report["data"].rstrip("/").rsplit("/", 1)[-1]
    images = "1 image" if report["examples"] == 1 else f"{report['examples']} images"
    return printable(f"{report['model']}, {images} of {seen}, {report['patches']} patches")


def text_of(report: dict[str, Any]) -> str:
    """What is printed, and written as Markdown."""
    parts = [tables.plain_text(title_of(report)), table(report["rows"]), ABOUT]
    first = report["rows"][0]
    if first["objects"]:
        covers = f"It covers {first['covered']:.1%} of the {first['objects']} images with boxes."
        parts.append(f"{ABOUT_OBJECTS} {covers}")
    return "\n\n".join(parts)


def write(report: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes analyze.md, analyze.csv, analyze.json and analyze.png.

    Raises:
      UserError: the folder cannot be written.
    """
    with output_folder.refusing(folder):
        (folder / "analyze.md").write_text(f"{text_of(report)}\n", encoding="utf-8")
        whole = tables.json_line(report, indent=1)
        (folder / "analyze.json").write_text(f"{whole}\n", encoding="utf-8")
        flat = [_flat(row, report["rows"]) for row in report["rows"]]
        with (folder / "analyze.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(flat[0]))
            writer.writeheader()
            writer.writerows(flat)
        token_figure.draw(report, title_of(report), folder / "analyze.png")


def _flat(row: Row, rows: Sequence[Row]) -> Row:
    """A row with a column for every number but those of blocks."""
    lists = ("iou", "iou_chance", "rank")
    flat = {key: value for key, value in row.items() if key not in (*lists, "by_block")}
    for key in lists:
        flat |= {f"{key} {other['reduction']}": x for other, x in zip(rows, row[key], strict=True)}
    return flat
