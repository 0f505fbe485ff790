"""The page of token maps: what is in it, how little of it is a name's, and how large it is."""

import base64
import hashlib
import re

import numpy as np
import pytest
from page_reading import Elements, array_of, data_of

from evovit_jax.errors import UserError
from evovit_jax.inference import token_page
from evovit_jax.inference.token_history import TokenHistory
from evovit_jax.inference.token_page import CLASS, DROPPED, Network, SeenImage

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "{{data}}{{program}}",
    "<!--<script>",
    "\u2028\u2029\x00\x1b[31m\udcff",
]
NAMES = [f"class {i}" for i in range(5)]


def history(maps, logits=(0.0, 1.0, 4.0, 2.0, 3.0), attention=None, grid=(2, 2)):
    attention = (None,) * len(maps) if attention is None else attention
    maps = np.array(maps, np.int32)
    return TokenHistory(np.array(logits, np.float32), maps, grid, attention)


def small_page(names, model="deit", class_names=NAMES, logits=(0.0, 1.0, 4.0, 2.0, 3.0)):
    photograph = np.zeros((8, 8, 3), np.uint8)
    dense = history([[0, 1, 2, 3, 4]])
    reduced = history([[0, 1, 2, 2, -1]], logits=logits)
    images = [SeenImage(name, photograph, [dense, reduced]) for name in names]
    networks = [Network("none", 1.25), Network("evit,keep_rate=0.7,locations=3:6", 0.8)]
    return token_page.page(model, networks, images, class_names)


def test_what_the_program_reads():
    data = data_of(small_page(["photo"]))
    assert data["grid"] == [2, 2]
    assert data["images"] == ["photo"]
    dense, reduced = data["networks"]
    assert (dense["method"], dense["settings"], dense["gmacs"]) == ("Dense", "", 1.25)
    assert reduced["method"] == "EViT"
    assert reduced["settings"] == "keep rate = 0.7, locations = 3:6"
    assert array_of(dense["images"][0]["groups"], "<u2").tolist() == [0, 1, 2, 3]
    assert array_of(reduced["images"][0]["groups"], "<u2").tolist() == [0, 1, 1, DROPPED]
    answers = reduced["images"][0]["answers"]
    assert [answer["name"] for answer in answers] == ["class 2", "class 4", "class 3"]
    shares = np.exp([4.0, 3.0, 2.0]) / np.exp([0.0, 1.0, 4.0, 2.0, 3.0]).sum()
    np.testing.assert_allclose([answer["probability"] for answer in answers], shares, rtol=1e-6)


def test_patches_in_a_class_token_and_in_none():
    found = token_page.first_patches(history([[0, 1, 0, 1, -3], [-1, -2, -2, 0, 0]]))
    np.testing.assert_array_equal(found, [[0, CLASS, 0, DROPPED], [DROPPED, DROPPED, 2, 2]])
    whole = TokenHistory(np.zeros(1, np.float32), np.array([[1, 0, 1, 0]], np.int32), (2, 2))
    np.testing.assert_array_equal(token_page.first_patches(whole), [[0, 1, 0, 1]])


def test_attention_is_in_parts_of_its_largest_value():
    attention = (np.array([0.0, 0.1, 0.2, np.nan], np.float32), None)
    seen = history([[0, 1, 2, 3, 4]] * 2, attention=attention)
    image = SeenImage("x", np.zeros((4, 4, 3), np.uint8), [seen])
    (network,) = data_of(token_page.page("m", [Network("none", 1.0)], [image], NAMES))["networks"]
    levels, nothing = network["images"][0]["attention"]
    assert array_of(levels, np.uint8).tolist() == [0, 128, 255, 0]
    assert nothing is None
    assert network["images"][0]["peaks"] == [pytest.approx(0.2), None]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_wherever_it_stands(name):
    text = small_page([name, "other"], model=name, class_names=[name] * 5)
    found, plain = Elements(text), Elements(small_page(["photo", "other"]))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(a) for _, a in found.tags] == [sorted(a) for _, a in plain.tags]
    data = data_of(text)
    shown = data["images"][0]
    assert shown.isprintable()
    assert [a["name"] for a in data["networks"][0]["images"][0]["answers"]] == [shown] * 3
    pictures = [attributes for tag, attributes in found.tags if tag == "img"]
    assert pictures[0]["alt"] == shown
    assert "{{" not in text.replace(name, "")
    text.encode()


def test_nothing_is_fetched_and_only_its_own_program_runs():
    text = small_page(HOSTILE)
    found = Elements(text)
    for _, attributes in found.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith("data:")
    outside = text.replace("".join(found.texts["script"]), "")
    assert not re.search(r"url\(|@import|https?:", outside)
    (policy,) = (
        a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind, own in (
        ("script-src", found.texts["script"][1]),
        ("style-src", found.texts["style"][0]),
    ):
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"


def test_four_images_in_eight_networks_are_less_than_three_megabytes():
    random = np.random.default_rng(0)
    attention = tuple(random.random((12, 196), np.float32))
    maps = random.integers(-3, 150, (12, 197))
    seen = TokenHistory(np.zeros(5, np.float32), maps.astype(np.int32), (14, 14), attention)
    photographs = random.integers(0, 255, (4, 448, 448, 3), np.uint8)  # noise: no JPEG is larger
    images = [SeenImage(f"photo {i}", photo, [seen] * 8) for i, photo in enumerate(photographs)]
    networks = [Network(f"tome,r={i}", 1.0) for i in range(8)]
    text = token_page.page("deit", networks, images, NAMES)
    assert len(text.encode()) < 3_000_000
    assert text.count("data:image/jpeg") == 4


def test_logits_that_are_no_numbers_have_no_answers():
    data = data_of(small_page(["x"], logits=(np.nan, 1.0, 2.0, 3.0, 4.0)))
    assert data["networks"][1]["images"][0]["answers"] == []
    assert len(data["networks"][0]["images"][0]["answers"]) == 3


def test_features_have_no_answers():
    data = data_of(small_page(["x"], class_names=None))
    assert data["networks"][0]["images"][0]["answers"] == []


def test_more_patches_than_the_numbers_go():
    seen = history([np.arange(256 * 256)], grid=(256, 256))
    image = SeenImage("x", np.zeros((4, 4, 3), np.uint8), [seen])
    with pytest.raises(UserError, match=r"a page shows less than 65534 patches an image"):
        token_page.page("m", [Network("none", 1.0)], [image], NAMES)
