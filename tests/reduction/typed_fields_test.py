"""Values for a method's fields that are of another type: one clear line, whatever they are."""

import dataclasses
import typing

import numpy as np
import pytest
from flax import nnx

from evovit_jax import reduction
from evovit_jax.errors import UserError
from evovit_jax.reduction import token_counts
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.typed_fields import checked

FLAT = Backbone(4, (12,), (3,), (4, 4), 1, (4,))
PYRAMID = Backbone(6, (16, 24, 32), (2, 2, 2), (4, 4), 1, (2, 2, 2), key_dim=8, stride=2)
NETWORKS = {"flat": FLAT, "pyramid": PYRAMID}
# A few of each kind in the quick run: a method is made some hundred times.
QUICK = {"none", "evo", "dynamicvit", "diffrate"}
METHODS = [
    pytest.param(method, network, marks=[] if method in QUICK else [pytest.mark.slow])
    for method in reduction.list_reductions()
    for network, backbone in NETWORKS.items()
    if not backbone.is_pyramid
    or reduction.reducer_class(method, in_pyramid=True).not_in_pyramids is None
]
# As a command line has them, and as a call may.
ODD = ["true", "false", "none", "no", "", "abc", "abc:1", ":", "0.5:", "1:2", "0.5:true", "nan"]
ODD += ["inf", "-inf", "1e999", "-1", "0", "1", "2.5", "99", "3:6:9", "0.5", "1:1:1:1"]
OBJECTS = [object(), {}, {1: 2}, [[1]], [None], b"x", 1j, np.zeros(2), np.float32(0.5)]
OBJECTS += [np.int64(1), np.bool_(True), np.nan, lambda: 1, range(3), "x\ny"]


def make(spec, network="flat"):
    return reduction.create_reducer(spec, NETWORKS[network], rngs=nnx.Rngs(0))


def runs_or_says(made):
    """Makes a reducer and walks its hooks; a `UserError` must be one line."""
    try:
        said = str(token_counts.count(made(), (4, 4)))
    except UserError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(("method", "network"), METHODS)
def test_any_value_of_any_field_works_or_is_one_line(method, network):
    plain = make(method, network)
    for field in dataclasses.fields(plain.Fields):
        for text in ODD:
            runs_or_says(lambda text=text, n=field.name: make(f"{method},{n}={text}", network))
        for value in OBJECTS:
            spec = {"name": method, field.name: value}
            runs_or_says(lambda spec=spec: make(spec, network))
            runs_or_says(lambda n=field.name, v=value: plain.override(**{n: v}))


NUMBERS = "a finite number or several with colons between them"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("evit,fuse=no", "reduction 'evit': fuse must be true or false, got 'no'"),
        ("evit,fuse=5", "reduction 'evit': fuse must be true or false, got 5"),
        ("evit,rounding=2", "reduction 'evit': rounding must be a word, got 2"),
        ("topk,keep_rate=abc", f"reduction 'topk': keep_rate must be {NUMBERS}, got 'abc'"),
        ("topk,keep_rate=true", f"reduction 'topk': keep_rate must be {NUMBERS}, got True"),
        ("topk,keep_rate=0.5:x", f"reduction 'topk': keep_rate must be {NUMBERS}, got 0.5:x"),
        (
            "topk,locations=abc",
            "reduction 'topk': locations must be a whole number, several with colons between them "
            "or none, got 'abc'",
        ),
        (
            "evo,stages=5",
            "reduction 'evo': stages must be whole numbers with colons between them (one as 3:) "
            "or none, got 5",
        ),
        ("kmedoids,iterations=inf", "iterations must be a whole number, got inf"),
        ("kmedoids,iterations=2:", "iterations must be a whole number, got 2:"),
        ("sinkhorn,eps=inf", "eps must be a finite number, got inf"),
        ("topk,locations=:", "locations must name one block or more of 0..3"),
        ("evo,stages=:", "evo stages must name one block or more of 0..3"),
        ({"name": 5}, "its name and its fields' names must be texts"),
    ],
)
def test_the_line_names_the_field_and_what_it_takes(spec, message):
    with pytest.raises(UserError) as error:
        make(spec)
    assert message in str(error.value)


def test_settings_for_a_call_are_checked_as_well():
    with pytest.raises(UserError, match="reduction EViT: fuse must be true or false, got 'no'"):
        make("evit").override(fuse="no")
    with pytest.raises(UserError, match="EViT has no field 'fuze'; did you mean 'fuse'"):
        make("evit").override(fuze=True)
    assert make("evit").override(locations=[1, 2]).fields.locations == (1, 2)
    same = {"keep_rate": np.float64(0.5), "locations": [1, 2]}
    fixed = make("patchmerger,keep_rate=0.5,locations=1:2").override(**same)
    assert fixed.locations == (1, 2)


def test_what_stands_for_a_type_goes_on_working():
    fields = make({"name": "evit", "keep_rate": 1, "locations": np.int64(2)}).fields
    assert (fields.keep_rate, fields.locations) == (1, 2)
    assert type(fields.locations) is int
    fields = make({"name": "evit", "keep_rate": [1, np.float32(0.5)], "locations": [1, 3]}).fields
    assert (fields.keep_rate, fields.locations) == ((1, 0.5), (1, 3))
    assert make("evo,stages=2:,average_from=none").fields.stages == (2,)
    assert make({"name": "evit", "fuse": np.bool_(False)}).fields.fuse is False


@dataclasses.dataclass(frozen=True)
class Outside:
    """Fields of types that the methods here do not have."""

    pair: tuple[int, float] = (1, 0.5)
    names: tuple[str, ...] = ()
    mode: typing.Literal["a", "b"] = "a"
    anything: typing.Any = None
    unresolved: "OnlyForTypeCheckers" = None
    made: int = dataclasses.field(default=0, init=False)


def test_types_beyond_those_are_taken_as_they_come():
    given = {"mode": "b", "anything": {1: 2}, "unresolved": 3, "pair": (2, 1), "names": ()}
    assert checked("it", Outside, given) == given
    with pytest.raises(UserError, match="it has no field 'made'"):
        checked("it", Outside, {"made": 1})
    Outside.__annotations__.pop("unresolved")
    for pair in ((1,), (0.5, 1), (1, 2, 3)):
        with pytest.raises(UserError, match="it: pair must be"):
            checked("it", Outside, {"pair": pair})
