"""A process of our own that answers on its standard output what it is asked on its input.

Tested in tests/benchmarking/timm_models_test.py.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def start(module: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """`python -m module arguments`, with text pipes; ended with the context, killed if it hangs."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
