"""What a program communicates, from lines of HLO as compilers write them."""

import re

import pytest

from evovit_jax.plan import collectives
from evovit_jax.plan.collectives import Collective

PROGRAM = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
}

%called (p: f32[4]) -> f32[32] {
  ROOT %g = f32[32]{0} all-gather(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%c, body=%body, \
    backend_config={"known_trip_count":{"n":"3"}}
  %c = f32[32]{0} call(%p), to_apply=%called
  %d = f32[32]{0} fusion(%p), kind=kLoop, calls=%called
  %o = (f32[2]{0}, bf16[4,2]{1,0}) all-reduce(%p, %q), replica_groups={}, to_apply=%add
}
"""


def test_loops_and_calls_count_as_often_as_they_run():
    assert collectives.read(PROGRAM, 8) == {
        "all-reduce": Collective(
            4, 3 * 32 + 24, int(2 * 7 / 8 * (3 * 32 + 24)), {"bf16": 16, "f32": 3 * 32 + 8}
        ),
        "all-gather": Collective(2, 2 * 128, 2 * 96, {"f32": 2 * 128}),
    }


# As a TPU's compiler writes it, which does not say how often.
CONDITION = """
%until (p: (s32[], f32[8])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(40)
  %constant.71 = s32[]{:T(128)} constant(4), metadata={op_name="jit(function)/while/cond/lt"}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt.5 = pred[]{:T(512)} compare(%i, %constant.71), direction=LT, backend_config={}
}

ENTRY"""


@pytest.mark.parametrize(
    ("condition", "turns"),
    [
        (CONDITION, 4),
        (CONDITION.replace("constant(4)", "get-tuple-element(%p), index=2"), 1),
        (CONDITION.replace("LT", "NE"), 1),
    ],
    ids=["counted", "until a value", "another condition"],
)
def test_a_loop_that_does_not_say_how_often_it_turns(condition, turns):
    program = PROGRAM.replace(
        """condition=%c, body=%body, \
    backend_config={"known_trip_count":{"n":"3"}}""",
        "condition=%until, body=%body",
    ).replace("\nENTRY", condition)
    assert collectives.read(program, 8)["all-reduce"].count == turns + 1


@pytest.mark.parametrize(
    ("line", "kind", "whole", "sent"),
    [
        # A tuple of operands and results, as asynchronous starts have it.
        (
            "%s = (f32[4]{0}, f32[16]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8]",
            "all-gather",
            64,
            48,
        ),
        (
            "%s = (bf16[2]{0}, bf16[2]{0}, u32[], u32[]) collective-permute-start(%p)",
            "collective-permute",
            4,
            4,
        ),
        (
            "%s = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1},{2,3}}, dimensions={0}",
            "reduce-scatter",
            32,
            16,
        ),
        (
            "%s = f32[8]{0} all-reduce-start(%p), replica_groups=mesh['a'=4,'b'=2] {'b'}",
            "all-reduce",
            32,
            32,
        ),
        (
            "%s = f32[8]{0} all-gather(%p), replica_groups=mesh['a'=4,'b'=2],"
            " device_ids=([4,2]T(1,0)) {'a','b'}",
            "all-gather",
            32,
            28,
        ),
        ("%s = pred[8]{0} all-to-all(%p)", "all-to-all", 8, 7),
    ],
)
def test_one_line(line, kind, whole, sent):
    program = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  {line}\n}}\n"
    (dtype,) = {"f32", "bf16", "pred"}.intersection(re.findall(r"\w+", line))
    found = Collective(1, whole, sent, {dtype: whole})
    assert collectives.read(program, 8) == {kind: found}


def test_a_program_that_says_nothing():
    program = "ENTRY %main (p: f32[8]) -> f32[8] {\n  ROOT %s = f32[8]{0} add(%p, %p)\n}\n"
    assert collectives.read(program, 8) == {}
