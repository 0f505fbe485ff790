"""Limits of the process (`ulimit`) that JAX does not survive: found before it starts.

Where it gets no thread or no memory it hangs, or ends the process from C++ with a stack trace.
"""

import contextlib
import mmap
import os
import threading

from evovit_jax.errors import UserError

# What the smallest training takes beyond what is imported: address space in bytes, threads, files.
# JAX starts some threads for each core.
ADDRESSES, THREADS, THREADS_A_CORE, FILES = 5 << 29, 64, 16, 32


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(what: str, needed: float, has: float | None = None, where: str = "") -> None:
    """Refuses what takes more memory than there is, this machine's by default.

    Raises:
      UserError: saying what needs so many bytes, and what has so few.
    """
    has, where = (memory(), "this machine") if has is None else (has, where)
    if needed > has:
        raise UserError(
            f"{what} at least {needed / 2**30:.1f} GiB, {where} has {has / 2**30:.1f}: make it "
            "smaller"
        )


def check() -> None:
    """Takes as much as a training will, and gives it back.

    Raises:
      UserError: a limit does not allow it.
    """
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(FILES):
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            raise _refusal(f"{FILES} open files", "n") from error
        try:
            room = mmap.mmap(-1, ADDRESSES, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            stack.callback(room.close)
        except OSError as error:
            raise _refusal(f"{ADDRESSES / 2**30} GiB of addresses", "v") from error
        _check_threads(THREADS + THREADS_A_CORE * (os.cpu_count() or 1))


def _check_threads(count: int) -> None:
    """Starts so many threads, and lets them end."""
    release, started = threading.Event(), []
    try:
        for _ in range(count):
            started.append(threading.Thread(target=release.wait, daemon=True))
            started[-1].start()
    except RuntimeError as error:
        started.pop()
        raise _refusal(f"{count} threads", "u") from error
    finally:
        release.set()
        for thread in started:
            thread.join()


def _refusal(what: str, flag: str) -> UserError:
    return UserError(
        f"the system does not give this process {what} more; raise the limit (`ulimit -{flag}`), "
        "or free what other programs hold, then start again"
    )
