"""What a CPU's compiler is told, and what training on one asks of the process."""

import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from tiny import tiny_config

from evovit_jax.hardware import cpu
from evovit_jax.parallel import inference_program
from evovit_jax.plan import memory
from evovit_jax.train.program import build

# Pages that the kernel hands out during ten calls of a program with two results of 32 MiB each.
FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from evovit_jax.hardware import cpu
print(cpu.keep_memory() if sys.argv[1] == "keep" else "")
call = jax.jit(lambda x: (x + 1, x * 2))
x = jnp.ones((8, 2**20))
for _ in range(10):
    jax.block_until_ready(call(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    jax.block_until_ready(call(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


# MiB that a process has after it took 256 of them, let go of all but the last, and gave back.
GIVEN_BACK = """
import ctypes, os, pathlib
from evovit_jax.hardware import cpu

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

libc = ctypes.CDLL(None)
libc.mallopt(cpu.M_MMAP_MAX, 0), libc.mallopt(cpu.M_TRIM_THRESHOLD, -1)  # as `keep_memory` does
libc.malloc.restype = ctypes.c_void_p
start = resident()
blocks = [ctypes.c_void_p(libc.malloc(2**20)) for _ in range(256)]
for block in blocks:
    libc.memset(block, 1, 2**20)
for block in blocks[:-1]:
    libc.free(block)
kept = resident()
print((kept - start) >> 20, cpu.give_back(), (resident() - start) >> 20)
"""


def faults(mode):
    command = [sys.executable, "-c", FAULTS, mode]
    said, count = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )[:2]
    return said, int(count)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_memory_is_kept_from_one_call_to_the_next():
    said, plain = faults("plain")
    assert said == ""
    assert plain > 1000  # pages: the test would see it if nothing were set
    said, kept = faults("keep")
    assert said == "True"
    # Plain, it is every result of every call. Kept, the heap may still grow by a few of the twenty.
    assert kept < 0.5 * plain


# How many heaps glibc has made (malloc_info) once JAX has its devices, and forty more threads wait.
HEAPS = """
import ctypes, os, tempfile, threading
from evovit_jax.hardware import cpu
cpu.keep_memory()
libc = ctypes.CDLL(None)
end = threading.Event()

def work():
    libc.malloc(1000)
    end.wait()

for _ in range(40):
    threading.Thread(target=work).start()
libc.fopen.restype, libc.malloc_info.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream), libc.fclose(stream)
    print(file.read().count(b"<heap nr"), os.cpu_count())
end.set()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_threads_share_a_heap_for_each_core():
    command = [sys.executable, "-c", HEAPS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    heaps, cores = map(int, done.stdout.split())
    assert heaps <= cores


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is glibc's")
def test_what_nothing_holds_is_given_back():
    command = [sys.executable, "-c", GIVEN_BACK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kept, given, left = done.stdout.split()
    assert given == "True"
    assert int(kept) > 250
    assert int(left) < 20


def test_a_system_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: object())
    assert cpu.keep_memory() is False
    assert cpu.give_back() is False
    monkeypatch.setattr(cpu.sys, "platform", "darwin")
    assert cpu.keep_memory() is False
    assert cpu.give_back() is False


def test_an_accelerator_is_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    told = {}
    libc = types.SimpleNamespace(mallopt=lambda name, value: told.update({name: value}))
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: libc)
    assert cpu.keep_memory() is False
    assert told == {cpu.M_ARENA_MAX: 0}
    assert cpu.training_options("gpu", "full") == {}
    assert cpu.inference_options("tpu") == {}


@pytest.fixture
def cores(tmp_path, monkeypatch):
    """Says what the cores are to be, in the place of Linux."""

    def say(text):
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        monkeypatch.setattr(cpu, "CORES", path)
        cpu.takes_avx512.cache_clear()

    yield say
    monkeypatch.undo()
    cpu.takes_avx512.cache_clear()


INTEL = "vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f avx512bw\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    "text",
    [
        INTEL.replace("avx512f ", ""),
        INTEL.replace("GenuineIntel", "AuthenticAMD"),
        "CPU implementer\t: 0x41\nFeatures\t: fp asimd\n",
    ],
    ids=["intel-avx2", "amd-avx512", "arm"],
)
def test_other_cores_are_compiled_for_as_ever(cores, text):
    cores(text)
    assert cpu.inference_options("cpu") == cpu.ROUND_AS_WRITTEN
    assert cpu.training_options("cpu", "full") == cpu.KEEP_BARRIERS
    assert cpu.training_options("cpu", "none") == {}


def test_a_system_that_does_not_say_what_its_cores_are(cores, monkeypatch, tmp_path):
    cores(INTEL)
    monkeypatch.setattr(cpu, "CORES", tmp_path / "nowhere")
    assert cpu.core_options() == {}


def test_options_that_a_compiler_does_not_know_are_left_out(cores, monkeypatch):
    cores(INTEL)
    monkeypatch.setattr(cpu, "ONEDNN", {"xla_cpu_of_another_version": True})
    assert cpu.core_options() == {}


@pytest.fixture
def product():
    """Two matrices, and their product as the commands would compile it on this machine."""
    a, b = jax.random.normal(jax.random.key(0), (2, 256, 256))
    return a, b, inference_program.jitted(jax.numpy.matmul).lower(a, b).compile()


wide = pytest.mark.skipif(not cpu.intel_with_avx512(), reason="not a core of Intel's with AVX-512")


@wide
def test_intels_wide_cores_multiply_by_onednn(without_cache, product):
    assert cpu.training_options("cpu", "none") == cpu.WIDE_VECTORS | cpu.ONEDNN
    a, b, compiled = product
    assert "onednn" in compiled.as_text()
    np.testing.assert_allclose(compiled(a, b), np.asarray(a) @ np.asarray(b), atol=1e-4)


@wide
def test_where_programs_are_kept_one_that_can_be_kept_is_made(product):
    assert jax.config.jax_compilation_cache_dir
    assert cpu.training_options("cpu", "none") == cpu.WIDE_VECTORS
    assert "onednn" not in product[2].as_text()


@pytest.mark.slow
def test_remat_is_not_undone_in_the_trainer():
    def temporaries(remat):
        config = tiny_config(
            batch_size=64, accumulate=1, model__depth=4, model__image_size=16, model__remat=remat
        )
        run = build(config, jax.devices()[:1])
        compiled = run.step_at(0).lower(run.like, memory.abstract_batch(run)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.6 * temporaries("none")
