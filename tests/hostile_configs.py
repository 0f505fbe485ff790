"""Flags of a training that a careless or a hostile user may give, and what becomes of them."""

import dataclasses
import pathlib
from unittest import mock

from absl import flags
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_flags
from tiny import tiny_flags

from evovit_jax import config as config_lib
from evovit_jax import reduction
from evovit_jax.config.fields import value_of

# The same examples in every run; nothing is timed, nothing is kept.
SAME = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NUMBERS = [
    "-1", "0", "1", "2", "3", "7", "16", "64", "100000", "2147483648", "99999999999999999999999",
    "1e20", "0.1", "0.5", "0.999999999", "1e-300", "1e-50", "1e308", "-0.5", "inf", "-inf", "nan",
    "9" * 5000, "1_0", "0x10",
]  # fmt: skip
TEXTS = [
    "", "x", "none", "None", "True", "false", "~nosuchuser/x", "folder:~nosuchuser/x", "folder:/",
    "folder:" + "x" * 5000, "x" * 5000, "tfds:digits:train[:0]", "tfds:digits:nosuch", "tfds:",
    "tfds:../../etc", "a\nb", "\x1b[31m", "é$\\frac$", "(", "(a+", "5:1", "0:1", "1:",
    "9" * 30 + ":1", "rand-m9-n999999999", "rand-m" + "9" * 400, "rand-m9-mstd0.5-inc1", "rand-x",
    "rand-m10-mmax99", "adamw", "lamb", "softmax", "sigmoid", "rrc", "src", "pad", "shift",
    "bicubic", "random", "nearest", "float32", "bfloat16", "float64", "int8", "full", "dots",
    "matmul", "fused", "soft", "hard", "self", "cls", "deit_tiny_patch16_224",
    "regnety_160,depth=100000", "levit_128s",
]  # fmt: skip
LISTS = [
    "()", "(1,)", "[1]", "(2,2)", "(0.5,0.5,0.5)", "(1e308,1e308,1e308)", "(1e-300,1,1)",
    "(0.1,0.9)", "(0.9,0.1)", "(nan,1)", "{}", "{'a':1}", "((),)", "(('.*',),)", "(('.*',7),)",
    "(('.*',1e300),)", "(('.*',None),)", "(('.*','fsdp'),)", "(('.*',[1]),)", "(('(',1),)", "(7,)",
    "('a','b')", "(('x{99999999999}',1),('.*',1))", "((1,2),(3,4))", "(" * 300 + ")" * 300,
]  # fmt: skip
FIELDS = ["true", "none", "1:2", "3:", "0.5:0.7", ":", "a:b", "0:0:0"]  # of a reduction
# Longer trainings than two steps, and what starts many processes, are refused or begun, not ended.
UNENDED = ("total_", "data_processes", "data_threads")


def values() -> st.SearchStrategy[str]:
    """What may stand behind a flag's equals sign."""
    listed = (st.sampled_from(some) for some in (NUMBERS, TEXTS, LISTS))
    return st.one_of(*listed, st.text(max_size=9))


def reductions() -> st.SearchStrategy[str]:
    """Any method with any of its fields given anything."""

    def fields_of(name: str) -> st.SearchStrategy[str]:
        fields = dataclasses.fields(reduction.reducer_class(name).Fields)
        known = [field.name for field in fields if field.init]
        value = st.sampled_from([*NUMBERS, *FIELDS])
        field = st.sampled_from([*known, "nosuch"])
        given = st.dictionaries(field, value, max_size=2)
        return given.map(lambda g: ",".join([name, *(f"{k}={v}" for k, v in g.items())]))

    return st.sampled_from(reduction.list_reductions()).flatmap(fields_of)


def overrides(most: int = 3) -> st.SearchStrategy[dict[str, str]]:
    """Some fields of a config with anything for values."""
    names = config_lib.field_names(config_lib.get_config())
    any_field = st.dictionaries(st.sampled_from(names), values(), min_size=1, max_size=most)
    method = reductions().map(lambda spec: {"reduction": spec})
    return st.one_of(any_field, any_field, method)


def plain(given: dict[str, str], config: ConfigDict) -> bool:
    """Whether a training of this ends after two steps."""
    longer = [name for name in given if name.startswith(UNENDED)]
    return not any(value_of(config, name) for name in longer)


def config_of(given: dict[str, str], recipe: str = "digits_evo.py") -> ConfigDict:
    """The config that the command makes of these flags, on the smallest recipe.

    Raises:
      UserError: as the command.
    """
    known = flags.FlagValues()
    argv = ["main", *tiny_flags(recipe), *(f"--config.{k}={v}" for k, v in given.items())]
    with mock.patch("sys.argv", argv):  # where ml_collections looks for overrides
        config_flags.DEFINE_config_file("config", flag_values=known)
        return config_lib.from_flags(known, argv, ("config",))


def is_untouched(workdir: pathlib.Path) -> bool:
    """Whether nothing was written there."""
    return not workdir.exists() or not any(workdir.iterdir())
