"""Errors that a user can mend: a line, a status, a hint."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from evovit_jax import errors


def test_a_user_error_ends_a_command_with_one_line(capsys):
    def main():
        raise errors.UserError("batch_size=0 must be at least 1")

    with pytest.raises(SystemExit) as end:
        errors.run_command(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: batch_size=0 must be at least 1\n"


def test_the_status_of_a_command_is_what_it_returns():
    with pytest.raises(SystemExit) as end:
        errors.run_command(lambda: 143)
    assert end.value.code == 143


def test_a_misspelt_name_gets_the_closest_one_else_all():
    assert errors.suggestion("evitt", ["evit", "tome"]) == "did you mean 'evit'?"
    assert errors.suggestion("xyz", ["tome", "evit"]) == "known: evit, tome"


def test_a_long_list_is_cut():
    assert errors.some(["a", "b"]) == "a, b"
    assert errors.some("abcdefgh", 3) == "a, b, c and 5 more"


def test_the_first_line_of_an_error():
    assert errors.first_line(ValueError("one\ntwo")) == "one"
    assert errors.first_line(ValueError("x" * 200), 10) == "x" * 10
    assert errors.first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def no_thread():
    thread = threading.Thread(target=print)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_):
            raise RuntimeError("can't start new thread")

        patch.setattr(threading, "_start_new_thread", refuse)
        thread.start()


def raises(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status", "line"),
    [
        (raises(OSError(errno.ENOSPC, "No space left", "x")), 2, "make room on the disk, then"),
        (raises(OSError(errno.EMFILE, "Too many open files")), 2, "open files (ulimit -n), then"),
        (raises(OSError(errno.EROFS, "Read-only", "x")), 2, "a place that can be written, then"),
        (raises(FileNotFoundError(2, "No such file", "x")), 2, "No such file: 'x'; see that"),
        (raises(MemoryError()), 2, "out of memory; free some"),
        (no_thread, 2, "processes and threads (ulimit -u), then start again"),
        (raises(KeyboardInterrupt()), 75, "interrupted by SIGINT; what is on disk is whole"),
        (raises(KeyboardInterrupt(signal.SIGHUP)), 75, "interrupted by SIGHUP; what"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_what_to_do(capsys, main, status, line):
    with pytest.raises(SystemExit) as end:
        errors.run_command(main)
    assert end.value.code == status
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err


def test_a_fault_of_the_code_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="not a limit"):
        errors.run_command(raises(RuntimeError("not a limit")))


def test_a_signal_ends_a_command_at_once_and_handlers_come_back(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(errors.os, "_exit", ended.append)
    numbers = (signal.SIGINT, signal.SIGHUP)
    # A process that was started in the background ignores them.
    kept = [signal.signal(number, signal.default_int_handler) for number in numbers]

    def main():
        for number in numbers:
            os.kill(os.getpid(), number)

    try:
        with pytest.raises(SystemExit):
            errors.run_command(main)
        assert [signal.getsignal(number) for number in numbers] == [signal.default_int_handler] * 2
    finally:
        for number, handler in zip(numbers, kept, strict=True):
            signal.signal(number, handler)
    assert ended == [75, 75]
    names = ("SIGINT", "SIGHUP")
    line = "error: interrupted by {}; what is on disk is whole: start again to go on"
    assert capfd.readouterr().err.splitlines() == [line.format(name) for name in names]


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with pytest.raises(SystemExit) as end:
            errors.run_command(lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert end.value.code is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_message_is_one_line_whatever_is_in_it():
    error = errors.UserError("no file 'a\nb\x1b[31m\udcff' " + "x" * 5000)
    assert str(error).startswith(r"no file 'a\nb\x1b[31m\udcff' x")
    assert len(str(error)) <= errors.MOST_SHOWN
    assert str(errors.UserError(str(error))) == str(error)
    assert errors.printable("é $x$ <b>") == "é $x$ <b>"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_command_prints_any_name(encoding):
    code = r"from evovit_jax import errors; errors.run_command(lambda: print('é\udcff\n') or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.decode(encoding).strip()
        == {"utf-8": r"é\udcff", "ascii": r"\xe9\udcff"}[encoding]
    )
