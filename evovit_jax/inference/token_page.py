"""One page that shows what networks make of the tokens of some images; it opens without a network.

The page's own text, style and program are token_page.html, .css and .js beside this file. Names
from data go into it as text only: escaped where they stand in HTML, and with no "<" in the JSON
that the program reads. A Content-Security-Policy in the page lets nothing run, and nothing apply,
but its own program and style, and nothing be fetched.
"""

import base64
import dataclasses
import hashlib
import html
import io
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from evovit_jax import tables
from evovit_jax.errors import UserError, printable
from evovit_jax.inference.token_history import TokenHistory
from evovit_jax.reduction import parse, reducer_class

# In the place of a group's first patch: the patch is in no token, or in a class token.
DROPPED, CLASS = 0xFFFF, 0xFFFE
MOST_IMAGES = 64
PHOTOGRAPH_QUALITY = 88  # of a JPEG file
ANSWERS = 3  # classes that are shown of each network


@dataclasses.dataclass(frozen=True)
class Network:
    """What the page says of a network.

    Attributes:
      reduction: in the form that `--reduction` takes.
      gmacs: billions of multiply-adds of an image.
    """

    reduction: str
    gmacs: float


@dataclasses.dataclass(frozen=True)
class SeenImage:
    """An image and what the networks make of it.

    Attributes:
      name: from a file or a data set, hence anything.
      photograph: what the networks see, in any resolution.
      histories: of each network.
    """

    name: str
    photograph: UInt8[np.ndarray, "s s 3"]
    histories: Sequence[TokenHistory]


def page(
    model: str,
    networks: Sequence[Network],
    images: Sequence[SeenImage],
    class_names: Sequence[str] | None = None,
) -> str:
    """The whole page, HTML.

    Args:
      model: the name of the model.
      networks: the first is what the others are compared with.
      images: at least one.
      class_names: of the logits; None where these are features, of which no answer is shown.

    Raises:
      UserError: the images have more patches than the page's numbers go.
    """
    grid = images[0].histories[0].grid
    if grid[0] * grid[1] >= CLASS:
        raise UserError(f"a page shows less than {CLASS} patches an image, these are {grid}")
    style, program = _file("css"), _file("js")
    data = {
        "model": printable(model),
        "grid": grid,
        "images": [printable(image.name) for image in images],
        "networks": [
            _described(network)
            | {"images": [_seen(image.histories[i], class_names) for image in images]}
            for i, network in enumerate(networks)
        ],
    }
    parts = {
        "policy": html.escape(_policy(style, program)),
        "title": html.escape(printable(model)),
        "style": style,
        "photographs": "\n".join(_choice(i, image) for i, image in enumerate(images)),
        "data": json_in_html(data),
        "program": program,
    }
    # In one pass: what stands in a part is not filled in again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("html"))


def _file(kind: str) -> str:
    return (resources.files(__package__) / f"token_page.{kind}").read_text(encoding="utf-8")


def _policy(style: str, program: str) -> str:
    """Allows the page's own style, program and embedded images, nothing else."""

    def own(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    allowed = f"img-src data:; style-src {own(style)}; script-src {own(program)}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def json_in_html(value: Any) -> str:
    """JSON that ends no element of HTML, whatever texts are in it."""
    text = tables.json_line(value)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _choice(number: int, image: SeenImage) -> str:
    """The button of an image, which is also where the page has its pixels from."""
    name = html.escape(printable(image.name))
    checked = " checked" if number == 0 else ""
    return (
        f'<label class="photograph" title="{name}">'
        f'<input type="radio" name="image" value="{number}"{checked}>'
        f'<img src="{_jpeg(image.photograph)}" alt="{name}"></label>'
    )


def _jpeg(pixels: UInt8[np.ndarray, "s s 3"]) -> str:
    """A data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=PHOTOGRAPH_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _described(network: Network) -> dict[str, Any]:
    """A network's method, its settings, and what it costs."""
    name, fields = parse(network.reduction)
    card = reducer_class(name).card
    settings = network.reduction.partition(",")[2].replace("_", " ").replace("=", " = ")
    return {
        "method": "Dense" if name == "none" else card.title if card else name,
        "settings": settings.replace(",", ", ") if fields else "",
        "gmacs": network.gmacs,
    }


def _seen(history: TokenHistory, class_names: Sequence[str] | None) -> dict[str, Any]:
    """What the page knows of one image in one network."""
    levels = [(None, None) if a is None else _levels(a) for a in history.attention]
    return {
        "groups": _base64(first_patches(history)),
        "attention": [None if level is None else _base64(level) for level, _ in levels],
        "peaks": [peak for _, peak in levels],
        "answers": _answers(history.logits, class_names),
    }


def first_patches(history: TokenHistory) -> UInt16[np.ndarray, "blocks p"]:
    """For each block and patch the first patch of those that share its token: itself, if alone.

    `CLASS` stands for those in a class token, `DROPPED` for those in none.
    """
    result = []
    for token_map in history.maps:
        patches = token_map[history.prefix :]
        _, first, member_of = np.unique(patches, return_index=True, return_inverse=True)
        firsts = first[member_of]
        firsts[np.isin(patches, token_map[: history.prefix])] = CLASS
        firsts[patches < 0] = DROPPED
        result.append(firsts)
    return np.array(result, np.uint16)


def _levels(attention: np.ndarray) -> tuple[UInt8[np.ndarray, " p"], float]:
    """Attention in 255 parts of its largest value, and that value; what is no number is 0."""
    attention = np.nan_to_num(attention, posinf=0.0, neginf=0.0)
    peak = float(attention.max())
    return np.round(255 * attention / max(peak, 1e-30)).astype(np.uint8), peak


def _base64(values: np.ndarray) -> str:
    """The bytes of an array, the lower one of a number first."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def _answers(logits: np.ndarray, class_names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The most probable classes; none where a logit is no finite number."""
    if class_names is None or not np.isfinite(logits).all():
        return []
    raised = np.exp(logits.astype(np.float64) - logits.max())
    shares = raised / raised.sum()
    return [
        {"name": printable(class_names[i]), "probability": float(shares[i])}
        for i in np.argsort(-shares, stable=True)[:ANSWERS]
    ]
