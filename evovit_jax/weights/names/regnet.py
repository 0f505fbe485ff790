"""RegNetY under timm's names, as DeiT's teacher has them, and under those of pycls.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import functools

from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import renamed_scheme


def _block(match) -> str:
    stage, block, rest = match.groups()
    return f"s{int(stage) + 1}.b{int(block) + 1}.{rest}"


TIMM_RENAMES = (
    (r"stages\.(\d+)\.(\d+)\.(.*)", _block),
    (r"head\.(.*)", r"head.fc.\1"),
)
# pycls calls the convolutions a, b and c, and keeps the residual branch in `f`.
PYCLS_RENAMES = (
    *TIMM_RENAMES,
    *(
        rename
        for number, letter in enumerate("abc", 1)
        for rename in (
            (rf"(s\d+\.b\d+)\.conv{number}\.conv\.(.*)", rf"\1.f.{letter}.\2"),
            (rf"(s\d+\.b\d+)\.conv{number}\.bn\.(.*)", rf"\1.f.{letter}_bn.\2"),
        )
    ),
    (r"(s\d+\.b\d+)\.se\.fc1\.(.*)", r"\1.f.se.f_ex.0.\2"),
    (r"(s\d+\.b\d+)\.se\.fc2\.(.*)", r"\1.f.se.f_ex.2.\2"),
    (r"(s\d+\.b\d+)\.downsample\.conv\.(.*)", r"\1.proj.\2"),
    (r"(s\d+\.b\d+)\.downsample\.bn\.(.*)", r"\1.bn.\2"),
)

FAMILIES = (
    Family(
        "pycls",
        functools.partial(renamed_scheme, renames=PYCLS_RENAMES),
        r"s1\.b1\.f\.a\.weight",
    ),
    Family("timm", functools.partial(renamed_scheme, renames=TIMM_RENAMES)),
)
