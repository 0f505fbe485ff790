"""The folder that a command writes into: made, probed, and refused in one line."""

import pytest

from evovit_jax.errors import UserError
from evovit_jax.inference import output_folder


def test_the_folder_is_made_and_left_empty(tmp_path, monkeypatch):
    assert output_folder.open_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_folder.open_folder("~/c") == tmp_path / "c"
    assert (tmp_path / "c").is_dir()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "--output is empty"),
        ("gs://bucket/x", "--output=gs://bucket/x is in an object store"),
        ("{file}/x", "cannot write to --output=.*/file/x: Not a directory"),
        ("{file}", "cannot write to --output=.*/file: File exists"),
    ],
)
def test_what_cannot_be_a_folder_is_named(tmp_path, output, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message) as caught:
        output_folder.open_folder(output.format(file=tmp_path / "file"))
    assert "\n" not in str(caught.value)


def test_a_folder_that_takes_no_files_is_named(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(output_folder.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot write to --output=.*: Permission denied"):
        output_folder.open_folder(str(tmp_path))


def test_a_disk_that_fills_up_later_is_named(tmp_path):
    with pytest.raises(UserError, match="No space left"), output_folder.refusing(tmp_path):
        raise OSError(28, "No space left on device")
