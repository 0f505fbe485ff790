"""What training on a CPU asks of the process and of the compiler."""

import subprocess
import sys
import types

import jax
import pytest
from tiny import tiny_config

from evovit_jax.hardware import cpu
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
    assert cpu.compiler_options("gpu", "full") == {}


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
