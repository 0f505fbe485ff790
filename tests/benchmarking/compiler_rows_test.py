"""Estimates for accelerators that are not here: what needs no compiler of its own."""

import contextlib
from types import MappingProxyType

import jax
import pytest
from tiny import some_slow

from evovit_jax.benchmarking import compiler_rows
from evovit_jax.hardware.gpu_compiler import Hosts

FOUND = {
    "estimate_of": "libtpu 0.0, jax 0.10",
    "rows": [
        {
            "target": "v5e",
            "model": "m",
            "reduction": "evo",
            "dtype": "bfloat16",
            "mode": "inference",
            "batch_size": 64,
            "estimated_mcycles": 6.5,
            "estimated_mcycles_low": 6.1,
            "estimated_ms": 4.3,
            "estimated_share_of_peak": 0.4,
            "gflop": 390.0,
            "temporary_mb": 0,
            "kernels": 150,
            "parts_mcycles": {"attention": 3.0, "MLP": 3.5},
            "without_estimate": {"sort": 2},
            "second_try": {},
        }
    ],
    "failed": [],
}


def test_the_table_says_that_it_measures_nothing_and_what_it_leaves_out():
    table = compiler_rows.table(FOUND)
    assert table.startswith("ESTIMATES of the compiler (libtpu 0.0, jax 0.10), not measurements")
    assert "images/s" not in table
    header, row = (line.strip("| ").split(" | ") for line in table.splitlines()[2:5:2])
    cells = dict(zip(header, row, strict=True))
    assert cells["attention"] == "3.0"
    assert cells["selection"] == "0"
    assert table.endswith("NOT COUNTED in m evo at 64: 2 sort")


class FakeTarget(Hosts):
    """A target of which nothing is compiled."""

    options = MappingProxyType({"level": 0})
    second_try = MappingProxyType({})

    def check_installed(self, flag):
        del flag

    def alone(self):
        return contextlib.nullcontext()

    def devices(self):
        return jax.devices()

    def version(self):
        return "compiler 1"


class PatientTarget(FakeTarget):
    """One that has another way."""

    second_try = MappingProxyType({"tiles": False})


class Compiled(compiler_rows.Program):
    """A program that was not compiled."""

    def __init__(self, second_try=None):
        object.__setattr__(self, "second_try", second_try or {})

    def row(self, target, dtype):
        del target, dtype
        return FOUND["rows"][0] | {"compile_seconds": 1.5, "second_try": self.second_try}


def test_what_a_compiler_gives_up_is_said_and_the_others_go_on(monkeypatch, capsys):
    def compile_for(place, name, reduction, **settings):
        if reduction == "evo":
            raise jax.errors.JaxRuntimeError("INTERNAL: no tiles for a product\nwith details")
        return Compiled()

    monkeypatch.setattr(compiler_rows, "compile_for", compile_for)
    monkeypatch.setattr(compiler_rows.known_targets, "parse", lambda *_: FakeTarget("v5e", "1x1"))
    found = compiler_rows.run(
        [("m", "evo"), ("m", "none")],
        targets=["v5e"],
        batch_sizes=[8],
        mode="inference",
        dtype="bfloat16",
    )
    assert [row["reduction"] for row in found["failed"]] == ["evo"]
    assert len(found["rows"]) == 1
    said = "DOES NOT COMPILE for v5e: m evo at 8: INTERNAL: no tiles for a product"
    assert compiler_rows.table(found).endswith(said)
    assert capsys.readouterr().out.splitlines()[0] == said


def test_a_program_that_a_compiler_gives_up_is_tried_once_more(monkeypatch):
    given = []

    class Lowered(jax.stages.Lowered):
        def __init__(self):
            pass

        def compile(self, compiler_options):
            given.append(compiler_options)
            if len(given) == 1:
                raise jax.errors.JaxRuntimeError("INTERNAL: no tiles")
            return jax.jit(lambda x: x).lower(0).compile()

    def compile_for(*_, target, **__):
        return Compiled(target.compile(Lowered())[1])

    target = PatientTarget("v5e", "1x1")
    monkeypatch.setattr(compiler_rows, "compile_for", compile_for)
    monkeypatch.setattr(compiler_rows.known_targets, "parse", lambda *_: target)
    found = compiler_rows.run(
        [("m", "evo")], targets=["v5e"], batch_sizes=[8], mode="train", dtype="bfloat16"
    )
    assert given == [{"level": 0}, {"level": 0, "tiles": False}]
    assert not found["failed"]
    assert compiler_rows.table(found).endswith("COMPILED AT A SECOND TRY, m evo at 64: tiles=False")


def test_a_gpu_has_a_table_of_its_own():
    row = FOUND["rows"][0] | {
        "target": "h100",
        "fused_attention": 12,
        "moved_mb": 4000,
        "parts_moved_mb": {"MLP": 1500.5},
        "without_estimate": {},
    }
    first, second = compiler_rows.table(FOUND | {"rows": [*FOUND["rows"], row]}).split("\n\nE")
    assert "NOT COUNTED" in first
    assert second.startswith("STIMATES at the data sheet's full speeds, which no program reaches (")
    header, shown = (line.strip("| ").split(" | ") for line in second.splitlines()[2:5:2])
    cells = dict(zip(header, shown, strict=True))
    assert (cells["fused attention"], cells["MLP"], cells["attention"]) == ("12", "1500.5", "0")
    assert "estimated M cycles" not in cells


@pytest.mark.slow
@pytest.mark.parametrize("mode", some_slow(["inference", "gradient", "train"], {"inference"}))
def test_a_program_is_compiled_from_shapes_alone(mode):
    """For this machine's CPU, whose compiler estimates nothing: the way is the same."""
    program = compiler_rows.compile_for(
        jax.devices()[0],
        "deit_tiny_patch16_224",
        "evo",
        batch_size=2,
        mode=mode,
        image_size=32,
        chunk=1,
    )
    passes = 1 if mode == "inference" else 3
    assert program.operations > 2 * passes * 2 * 12 * 4 * 12 * 192**2
    assert program.compiled.memory_analysis().temp_size_in_bytes > 0
