"""Reads the page of `visualize --html` as a browser does, without one."""

import base64
import html.parser
import json
from typing import Any

import numpy as np


class Elements(html.parser.HTMLParser):
    """All start tags with their attributes, and the texts of scripts and styles by tag."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts = [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem:  # inside of script or style
            self.texts.setdefault(self.tags[-1][0], []).append(data)


def data_of(text: str) -> dict[str, Any]:
    """What the page's program reads."""
    return json.loads(Elements(text).texts["script"][0])


def array_of(text: str, dtype: Any) -> np.ndarray:
    """One array of that."""
    return np.frombuffer(base64.b64decode(text), dtype)
