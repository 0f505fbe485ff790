"""One strict JAX for the whole suite: 8 virtual CPU devices, no promotion, a shared cache."""

import dataclasses
import gc
import os
import pathlib
import tempfile

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

CACHE = pathlib.Path(tempfile.gettempdir()) / f"evovit_jax_test_cache_{os.getuid()}"
# Read by the commands that the tests start; this process is told below. Tiny networks compile for
# much longer than they run, so most of the compiler's optimisations are off: a third of the time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# What hypothesis keeps of Unicode and the like; examples are not kept.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(CACHE / "hypothesis"))
if jax.__version_info__ < (0, 13):  # XLA ends the process for a flag that it no longer has
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# No test reads from which line of Python an operation of a program came.
jax.config.update("jax_traceback_in_locations_limit", 0)

GOLDEN = pathlib.Path(__file__).parent / "golden"


gc.disable()  # nothing of what is imported is garbage


def pytest_collection_finish():
    """What was imported stays to the end: the garbage collector need not look at it again."""
    gc.freeze()
    gc.enable()


def pytest_addoption(parser):
    parser.addoption("--golden-dir", default=None, help="check every golden file of this folder")


@pytest.fixture(autouse=True)
def known_platform():
    """Only the CPU's formulations are traced; `compiling_for(None)` in a test lifts it."""
    from evovit_jax.hardware.platforms import compiling_for  # after the hook that checks shapes

    with compiling_for("cpu"):
        yield


@pytest.fixture
def without_cache():
    """JAX as it is where nobody has said where to keep compiled programs."""
    folder = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def shallow():
    """The name of a DeiT of four small blocks, for commands that take a model by its name."""
    from evovit_jax.models import registry

    name, small = "deit_shallow_patch16_224", {"embed_dim": 24, "depth": 4, "num_heads": 3}
    entry = registry.model_table()["deit_tiny_patch16_224"]
    entry = dataclasses.replace(entry, settings={**entry.settings, **small})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._registered, name, entry)
        yield name


@pytest.fixture
def data_dir() -> pathlib.Path:
    """The folder of the real data, from EVOVIT_TEST_DATA; the test is skipped without it."""
    folder = os.environ.get("EVOVIT_TEST_DATA")
    if not folder:
        pytest.skip("EVOVIT_TEST_DATA is not set")
    return pathlib.Path(folder)
