"""Whatever a flag of a command says: what the command is for, or one line, status 2."""

import importlib
from typing import NamedTuple

import numpy as np
import pytest
from hostile_configs import SAME, reductions, values
from hostile_files import not_for_ever
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_config

from evovit_jax.errors import UserError
from evovit_jax.train import loop

pytestmark = [
    # ml_collections loads recipes in a way that Python wants to drop.
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
    # A picture's title may be in any script; its font need not have it.
    pytest.mark.filterwarnings("ignore:Glyph .* missing from font"),
]

LOOKS = (
    "model", "weights", "reduction", "image_size", "num_classes", "classes", "resize",
    "crop_fraction", "dtype", "max_image_pixels",
)  # fmt: skip


class Command(NamedTuple):
    """The flags of a command: those of a short run, and those that may be anything beside."""

    run: dict[str, str]
    others: tuple[str, ...]


COMMANDS = {
    "evaluate": Command(
        {"weights": "run", "data": "folder:data"}, (*LOOKS, "data_dir", "batch_size")
    ),
    "predict": Command({"weights": "run", "": "data/1/x.png"}, (*LOOKS, "class_names")),
    "visualize": Command(
        {"weights": "run", "": "data/1/x.png", "output": "out"},
        (*LOOKS, "count", "data", "reductions", "html", "grid", "class_names"),
    ),
    "compare": Command(
        {"weights": "run", "data": "folder:data", "reductions": "none", "output": "out",
         "rounds": "1"},
        (*LOOKS, "data_dir", "batch_size", "at_gmacs"),
    ),
    "analyze": Command(
        {"weights": "run", "data": "folder:data", "reductions": "none", "output": "out"},
        (*LOOKS, "data_dir", "batch_size", "count", "boxes"),
    ),
    "convert": Command(
        {"input": "run", "output": "out.npz"},
        ("model", "family", "reduction", "image_size", "num_classes"),
    ),
    "export": Command(
        {"weights": "run", "output": "out.stablehlo"},
        (*LOOKS, "format", "input", "data", "data_dir", "tolerance", "class_names"),
    ),
    "benchmark": Command(
        {"models": "deit_tiny_patch16_224", "image_size": "16", "rounds": "1", "seconds": "0.01",
         "batch_sizes": "1"},
        ("mode", "target", "dtype", "chunk", "remat", "peers", "data", "data_dir", "output"),
    ),
}  # fmt: skip
# What walks through all files of the machine, or through an hour, as it was asked to.
SLOW_VALUES = {"folder:/"}


def flags_of(command: Command, given: dict[str, str]) -> list[str]:
    """A command line; the name "" stands for an argument without a flag."""
    together = command.run | given
    return [f"--{name}={value}" if name else value for name, value in together.items()]


def overrides(command: Command) -> st.SearchStrategy[dict[str, str]]:
    """Up to two flags of a command with anything for values."""
    anything = values().filter(lambda value: value not in SLOW_VALUES)
    names = st.sampled_from([*command.run, *command.others])
    any_flag = st.dictionaries(names, anything, min_size=1, max_size=2)
    if "reduction" not in command.others:
        return any_flag
    return st.one_of(any_flag, any_flag, reductions().map(lambda spec: {"reduction": spec}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run and two images, as work/run and work/data."""
    folder = tmp_path_factory.mktemp("commands")
    for label in ("0", "1"):
        (folder / "data" / label).mkdir(parents=True)
        pixels = np.full((9, 8, 3), 50 * int(label), np.uint8)
        Image.fromarray(pixels).save(folder / "data" / label / "x.png")
    loop.train_and_evaluate(tiny_config(total_steps=1, reduction="none"), folder / "run")
    return folder


def outcome(name: str, arguments: list[str]) -> str | None:
    """What a command is refused with, None where it runs."""
    main = importlib.import_module(f"evovit_jax.{name}").main
    try:
        with not_for_ever(120):
            status = main(arguments)
    except UserError as error:
        return str(error)
    assert not status
    return None


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_any_flags_run_or_are_refused_in_one_line(name, place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    command = COMMANDS[name]
    runs = []

    @settings(SAME, max_examples=40)
    @given(overrides(command))
    def try_flags(given):
        said = outcome(name, flags_of(command, given))
        runs.append(said is None)
        assert said is None or (said.isprintable() and 0 < len(said) <= 1000)

    assert outcome(name, flags_of(command, {})) is None
    try_flags()
    assert not all(runs)


REFUSED = [
    ("evaluate", {"batch_size": "9" * 30}, "must be at least 1 and at most 16777216"),
    ("evaluate", {"batch_size": "x"}, "argument --batch_size: invalid int value: 'x'; --help"),
    ("evaluate", {"nosuch": "1"}, "unrecognized arguments: --nosuch=1; --help"),
    ("evaluate", {"crop_fraction": "1e-308"}, "--crop_fraction=1e-308 must be at least 0.0001"),
    ("evaluate", {"crop_fraction": "nan"}, "--crop_fraction=nan must be at least"),
    ("predict", {"resize": "99999999999"}, "--resize=99999999999 must be at most 65536"),
    ("compare", {"rounds": "2147483648"}, "--rounds=2147483648 must be at least 1 and at most"),
    ("analyze", {"count": "0"}, "--count=0 must be at least 1"),
    ("benchmark", {"rounds": "2147483648"}, "--rounds=2147483648 must be at least 1 and at most"),
    ("benchmark", {"seconds": "nan"}, "--seconds=nan must be above 0"),
    ("benchmark", {"seconds": "inf"}, "--seconds=inf must be above 0"),
    (
        "benchmark",
        {"batch_sizes": "1," + "9" * 4000},
        "--batch_sizes must be .* at most 16777216, got",
    ),
    ("benchmark", {"image_size": "99999999"}, "--image_size=99999999 must be from 1 to 8192"),
    ("benchmark", {"mode": "x"}, "argument --mode: invalid choice: 'x'"),
    ("convert", {"output": ""}, "must not be empty"),
]


@pytest.mark.parametrize(("name", "given", "said"), REFUSED)
def test_what_was_not_refused_in_one_line(name, given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        importlib.import_module(f"evovit_jax.{name}").main(flags_of(COMMANDS[name], given))
