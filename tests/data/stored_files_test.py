"""Names that stand for no file that can be read, and paths that nobody has."""

import os
import sys

import pytest
from hostile_files import IRREGULAR, irregular

from evovit_jax.data import stored_files
from evovit_jax.errors import UserError


@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_file_is_not_read(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"no regular file|No such file|symbolic links|1048576 MB"):
        stored_files.read_regular(irregular(tmp_path, kind))


def test_a_name_that_no_file_can_have_is_not_read():
    with pytest.raises(OSError, match="no path has such characters"):
        stored_files.read_regular("a\0b")


def test_a_regular_file_is_read_through_links(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert stored_files.read_regular(tmp_path / "link") == b"content"
    with pytest.raises(OSError, match="more than"):
        stored_files.read_regular(tmp_path / "link", most=6)


def test_a_pipe_in_the_place_of_the_file_that_was_looked_at_does_not_wait(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"content")
    found = os.stat(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(stored_files.os, "stat", lambda path: found)
    assert stored_files.read_regular(tmp_path / "pipe") == b""


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "--output is empty"),
        ("~nosuchuser/x", "no home directory of that user"),
        ("x" * 5000, "the name is too long"),
        ("x/" * 3000, "the name is too long"),
        ("a\0b", r"a\\x00b: no path has such characters"),
    ],
)
def test_paths_that_nobody_has(path, message):
    with pytest.raises(UserError, match=message) as error:
        stored_files.expanded(path, "--output")
    assert len(str(error.value)) <= 1000


def test_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(stored_files.expanded("~/x", "--output")) == "/home/somebody/x"
    assert str(stored_files.expanded(sys.executable, "x")) == sys.executable
