"""What a run needs of a slice that is not here: the arithmetic, the report, the refusals."""

import dataclasses
import json

import jax
import pytest
from tiny import tiny_config, tiny_flags

from evovit_jax.errors import UserError
from evovit_jax.hardware.target import Estimate
from evovit_jax.hardware.tpu_compiler import Slice
from evovit_jax.plan import topology, topology_report
from evovit_jax.plan.collectives import Collective
from evovit_jax.plan.topology_report import PhaseEstimate, TopologyPlan
from tests.plan.memory_test import command, example

V5E = Slice("v5e", "2x4")
ESTIMATE = Estimate((5.0, 10.0), {"sort": 2}, {})


def test_a_step_takes_its_estimate_and_at_most_its_communication_too():
    sent = {"all-reduce": Collective(1, 10**8, 2 * 10**8, {"f32": 10**8})}
    low, high = topology.step_ms(example(collectives=sent), ESTIMATE, V5E)
    assert low == pytest.approx(5)
    assert high == pytest.approx(10 + 1)  # 200 MB at 200 GB/s


@pytest.fixture(scope="module")
def config():
    return tiny_config()


def slice_for(config, plan, hbm_gib, *, batch_size=1024, data=-1, fsdp=1):
    config.update(batch_size=batch_size, mesh={"data": data, "fsdp": fsdp})
    found = topology.smallest_fitting(plan, config, V5E, hbm_gib)
    return found and str(found)


def test_the_smallest_slice_holds_more_images_a_device(config):
    """4 GiB of state, 4 GiB of activations on 8 devices: 8 GiB of them on 4, 2 GiB on 16."""
    assert slice_for(config, example(), 12) == "v5e:2x2"
    assert slice_for(config, example(), 11.9) == "v5e:2x4"
    assert slice_for(config, example(), 6) == "v5e:4x4"
    assert slice_for(config, example(), 4) is None  # the state stays
    assert slice_for(config, example(), 2, data=1, fsdp=-1) == "v5e:4x8"
    assert slice_for(config, example(), 12, fsdp=8) == "v5e:2x4"
    assert slice_for(config, example(), 4.3, batch_size=32) is None  # 32 images, 64 devices


def planned(**changes):
    later = dataclasses.replace(example(), phase="from step 9", activation_bytes_per_device=2**31)
    phases = (
        PhaseEstimate(example(), 3600, (5.0, 10.0), {"sort": 2}),
        PhaseEstimate(None, 7200, (4.0, 10.0), {}),
        PhaseEstimate(later, 36_000, (4.0, 8.0), {}),
    )
    return TopologyPlan(V5E, 16, "libtpu 0.0, jax 0.10", phases, Slice("v5e", "2x2"), **changes)


def test_the_report():
    text = topology_report.as_text(planned())
    assert text.index("from step 0") < text.index("from step 9")
    assert text.count("fits: ") == 2
    tail = text[text.index("ESTIMATES") :].splitlines()
    assert tail == [
        "ESTIMATES of the compiler (libtpu 0.0, jax 0.10), not measurements",
        "3600 steps of 5.0 to 10.0 ms each",
        "NOT COUNTED in such a step: 2 sort",
        "7200 steps of 4.0 to 10.0 ms each",
        "36000 steps of 4.0 to 8.0 ms each",
        "0.1 to 0.1 hours to the end of the recipe, without evaluating",
        "the smallest slice that should hold it, by images a device: v5e:2x2",
    ]


def test_the_report_as_json():
    found = json.loads(topology_report.as_json(planned()))
    assert found["activation_bytes_per_device"] == 2**32  # of the phase that needs the most
    assert found["estimated_hours"] == 0.11
    assert found["estimated_hours_low"] == 0.05
    assert (found["topology"], found["smallest_topology"]) == ("v5e:2x4", "v5e:2x2")
    assert found["fits"] is True
    assert [phase["plan"] is None for phase in found["phases"]] == [False, True, False]


def test_the_memory_of_an_unknown_device_must_be_given():
    assert topology.memory_of("TPU v5 lite") == 16
    with pytest.raises(UserError, match="give --hbm_gib"):
        topology.memory_of("cpu")


@pytest.fixture
def here(monkeypatch):
    """This machine's CPU in the place of the slice; its compiler estimates nothing."""
    monkeypatch.setattr(Slice, "devices", lambda topology: jax.devices())
    monkeypatch.setattr(Slice, "version", lambda topology: "no compiler")


@pytest.mark.slow
def test_the_first_and_the_last_phase_are_compiled(here):
    fields = {"keep_rate_start_steps": 1, "keep_rate_warmup_steps": 4, "keep_rate_levels": 2}
    config = tiny_config("deit_s_evit.py", batch_size=16, eval_batch_size=16, total_steps=10)
    config.update_from_flattened_dict({"keep_rate_start_epochs": None, **fields})
    config.update_from_flattened_dict({"keep_rate_warmup_epochs": None})
    found = topology.make(config, V5E, hbm_gib=1)
    assert [phase.steps for phase in found.phases] == [1, 2, 2, 5]
    assert [phase.plan is None for phase in found.phases] == [False, True, True, False]
    first, last = found.phases[0].plan, found.phases[-1].plan
    assert first.activation_bytes_per_device >= last.activation_bytes_per_device
    assert str(found.smallest) == "v5e:2x2"


@pytest.mark.slow
def test_a_program_that_the_compiler_refuses_is_an_error_in_a_line(here, monkeypatch):
    def refused(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 20 of 16 GiB\nmore")

    monkeypatch.setattr(topology.memory, "compiled_plan", refused)
    with pytest.raises(UserError, match=r"refuses the step: RESOURCE_EXHAUSTED: 20 of 16 GiB$"):
        topology.make(tiny_config(), V5E, hbm_gib=1)


@pytest.mark.slow
def test_the_command_refuses_what_is_no_slice():
    done = command(*tiny_flags(), "--plan", "--topology=v5e:3x3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: --topology=v5e:3x3: sizes of v5e are 2x2, 2x4" in done.stderr
