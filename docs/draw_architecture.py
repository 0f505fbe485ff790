"""Draws the pictures of docs/architecture.md: `python docs/draw_architecture.py` writes them anew.

The rooms are read from the import contract in pyproject.toml and from each room's docstring, the
hooks of a reducer from its class, so that the pictures cannot say anything else than the code.
"""

import ast
import pathlib
import textwrap
import tomllib
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).parents[1]
DOCS = pathlib.Path(__file__).parent
WIDTH, ROW, GAP = 880, 46, 8
LINE, INK, PAPER, ROOM, DOOR = "#8a94a6", "#1c2430", "#ffffff", "#eef2f8", "#fdf0dc"
# A block's steps in the order of a pass: (who acts, what is called or done).
LIFE = (
    ("reducer", "before_block"),
    ("reducer", "attention_request"),
    ("block", "attention"),
    ("reducer", "after_attention"),
    ("block", "feed-forward"),
    ("reducer", "after_block"),
)


def layers() -> list[list[str]]:
    """The contract's layers from the highest to the lowest, each a list of room names."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def purpose(name: str) -> str:
    """The first sentence of the docstring of a room, or of a module of the hall."""
    room = ROOT / "evovit_jax" / name / "__init__.py"
    path = room if room.is_file() else ROOT / "evovit_jax" / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text()))
    return " ".join(text.split("\n\n")[0].split())


def is_room(name: str) -> bool:
    """Whether it is a folder; the doors and the ground are single files."""
    return (ROOT / "evovit_jax" / name).is_dir()


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    """A rounded rectangle."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
        f'fill="{fill}" stroke="{LINE}"/>'
    )


def words(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start") -> str:
    """A line of text; its baseline is at `y`."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def svg(height: float, parts: list[str], title: str) -> str:
    """A whole picture."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'font-family="Helvetica, Arial, sans-serif" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="7" refY="4" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height:g}" fill="{PAPER}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def rooms() -> str:
    """The rooms from the doors down to the ground, with what each is for."""
    parts, y = [], GAP
    for names in layers():
        share = (WIDTH - 40 - GAP * (len(names) + 1)) / len(names)
        for i, name in enumerate(names):
            x = 40 + GAP + i * (share + GAP)
            parts.append(box(x, y, share, ROW, ROOM if is_room(name) else DOOR))
            if len(names) > 2:  # the doors: their names say what they do
                parts.append(words(x + share / 2, y + 28, name, anchor="middle"))
                continue
            parts.append(words(x + 12, y + 19, f"{name}/" if is_room(name) else f"{name}.py"))
            fits = int((share - 24) / 5.4)
            said = textwrap.shorten(purpose(name), fits, placeholder=" ...")
            parts.append(words(x + 12, y + 36, said, size=11))
        y += ROW + GAP
    arrow = f'<path d="M20,{GAP} V{y - GAP}" stroke="{LINE}" marker-end="url(#tip)"/>'
    turned = f'<g transform="translate(14 {y / 2:g}) rotate(-90)">'
    parts += [arrow, turned + words(0, 0, "imports", size=11, anchor="middle") + "</g>"]
    return svg(y, parts, "The rooms of evovit_jax; imports go down only")


def life() -> str:
    """What a reducer is asked in one block, and what surrounds the blocks."""
    width, parts = (WIDTH - 2 * 60 - 5 * 14) / 6, []
    parts.append(words(60, 20, "once: start(tokens), then for every block:"))
    for i, (who, step) in enumerate(LIFE):
        x, fill = 60 + i * (width + 14), ROOM if who == "block" else DOOR
        parts += [
            box(x, 34, width, ROW, fill),
            words(x + width / 2, 53, who, size=10, anchor="middle"),
            words(x + width / 2, 69, step, size=12, anchor="middle"),
        ]
        if i:
            parts.append(
                f'<path d="M{x - 13:g},57 H{x - 2:g}" stroke="{LINE}" marker-end="url(#tip)"/>'
            )
    last, y = 60 + 6 * width + 5 * 14, 34 + ROW
    parts.append(
        f'<path d="M{last - width / 2:g},{y} V{y + 20} H{60 + width / 2:g} V{y + 4}" fill="none" '
        f'stroke="{LINE}" marker-end="url(#tip)"/>'
    )
    parts.append(
        words(
            WIDTH / 2,
            y + 16,
            "TokenSet: x, source, scores, sizes, mask, aside",
            size=11,
            anchor="middle",
        )
    )
    parts.append(
        words(
            60,
            y + 44,
            "between a pyramid's stages: subsample_request, subsample; "
            "at the end: finish(tokens), losses, aux",
        )
    )
    return svg(y + 58, parts, "A reducer's life in one block")


PICTURES = {"architecture.svg": rooms, "reducer.svg": life}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (DOCS / name).write_text(draw())
