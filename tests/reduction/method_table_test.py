"""What the documents say of the methods: a card of each class's own, true, and written as it is.

Also tests evovit_jax/reduction/__main__.py and card.py.
"""

import pathlib
import re

import pytest
from tiny import shapes_of, some_slow

from evovit_jax import reduction
from evovit_jax.errors import UserError
from evovit_jax.inference import model_flags
from evovit_jax.models import abstract_model, attention
from evovit_jax.reduction import __main__ as command
from evovit_jax.reduction import method_table
from evovit_jax.reduction.card import NEEDED, TRAINING, Card

ROOT = pathlib.Path(__file__).parents[2]
TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 4, "num_heads": 3}
METHODS = list(reduction.METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_is(method):
    cls, (module, name) = reduction.reducer_class(method), reduction.METHODS[method]
    where = f"class {name} of evovit_jax/reduction/{module}.py"
    card = vars(cls).get("card")
    assert isinstance(card, Card), (
        f"{where} has no card of its own: give it `card = Card(...)` of reduction/card.py, then "
        "run python -m evovit_jax.reduction --write docs/methods.md README.md"
    )
    assert card.training in TRAINING, f"{where}: card.training must be one of {TRAINING}"
    texts = (card.title, card.paper, card.summary, card.score or method == "none")
    assert all(texts), f"{where}: title, paper, summary and score must say something"
    for text in (card.summary, card.score, card.notes, card.in_pyramids, card.fused_attention):
        assert not text.endswith("."), f"{where}: {text!r} is a phrase, without a full stop"
    for repository in card.equal_to:
        assert repository.count("/") == 1, f"{where}: {repository!r} is not OWNER/NAME"
    if method != "none" and card.training != NEEDED:
        assert cls.knob, (
            f"{where} needs no training and has no knob: say which field makes it cheaper or "
            "dearer, `knob = Knob(FIELD, values)` of reduction/knob.py"
        )
    if cls.knob:
        assert cls.knob.field in {field.name for field in cls.Fields.__dataclass_fields__.values()}
    settings = reduction.parse(f"{method},{card.untrained}" if card.untrained else method)
    reduction.resolve({"name": method, **settings[1]})


@pytest.mark.parametrize("method", some_slow(METHODS, {"evit", "tome", "kmedoids", "pitome"}))
def test_what_it_says_of_fused_attention_is_true(method, monkeypatch):
    asked, can_fuse = [], attention.can_fuse

    def noted(*arguments):
        asked.append(can_fuse(*arguments))
        return asked[-1]

    monkeypatch.setattr(attention, "can_fuse", noted)
    spec = "diffrate,prune_kept=17:12:9:6" if method == "diffrate" else method
    shapes_of(abstract_model("deit_tiny_patch16_224", spec, **TINY), 1, 16, 16, 3)
    everywhere = len(asked) >= TINY["depth"] and all(asked)
    assert (reduction.reducer_class(method).card.fused_attention == "yes") is everywhere


def test_what_runs_in_no_pyramid_says_no():
    column = method_table.HEADER.index("in pyramids")
    for method in METHODS:
        cls = reduction.reducer_class(method, in_pyramid=True)
        runs = cls.not_in_pyramids is None or cls.keeps_map
        assert (method_table.row(method)[column] != "no") is runs, method


@pytest.mark.parametrize("document", ["docs/methods.md", "README.md"])
def test_the_documents_are_as_they_are_written(document, tmp_path):
    copy = tmp_path / "copy.md"
    copy.write_text((ROOT / document).read_text())
    assert command.main(["--write", str(copy)]) == 0
    again = "write it again: python -m evovit_jax.reduction --write docs/methods.md README.md"
    assert copy.read_text() == (ROOT / document).read_text(), again


def test_names_and_help_have_every_method_once(capsys):
    free, needed = method_table.by_training()
    assert sorted([*free, *needed, "none"]) == sorted(METHODS)
    assert "tome" in free
    assert "dynamicvit" in needed
    parser = model_flags.argparse.ArgumentParser()
    model_flags.add_flags(parser)
    said = " ".join(parser.format_help().split())
    for method in METHODS:
        assert re.search(rf"\W{method}\W", said), method
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(METHODS)
    assert lines[2].startswith("| `none` | ")


def test_a_file_without_places_is_named(tmp_path):
    path = tmp_path / "x.md"
    for text in ("nothing", None):
        if text:
            path.write_text(text)
        with pytest.raises(UserError, match=r"x\.md has no line <!-- methods --> nor <!-- names"):
            command.main(["--write", str(path if text else tmp_path / "gone" / "x.md")])
    path.write_text("<!-- methods -->\n")
    with pytest.raises(UserError, match="has no lines <!-- methods --> and <!-- end of methods"):
        command.main(["--write", str(path)])
