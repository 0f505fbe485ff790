"""The export command."""

import json

import pytest

from evovit_jax import export
from evovit_jax.errors import UserError
from evovit_jax.exporting import checked

FLAGS = ["--model=deit_tiny_patch16_224", "--output=network"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tolerance=nan"], "--tolerance=nan must be at least 0"),
        (["--tolerance=-1"], "--tolerance=-1.0 must be at least 0"),
        (["--output=gs://bucket/x"], "in an object store"),
        (["--output=."], "a folder with other files"),
        (["--output="], "--output is empty"),
        (["--format=coreml"], "invalid choice: 'coreml'"),
        (["--input=float64"], "invalid choice: 'float64'"),
        (["--model=deit_tinny_patch16_224"], "did you mean"),
        (["--reduction=nosuch"], "nosuch"),
    ],
)
def test_flags_that_cannot_be_used(flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").write_text("")
    with pytest.raises(UserError, match=said):
        export.main([*FLAGS, *flags])
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_it_says_what_was_written_and_on_what_it_was_checked(tmp_path, capsys, monkeypatch):
    about = {
        "bytes": 2_345_678,
        "check": {
            "images": 50,
            "of": "the first of folder:x",
            "largest_difference": 2.34e-6,
            "undecided": [3],
        },
    }
    given = {}

    def instead(prepared, file_format, place, **settings):
        given.update(settings, name=prepared.name, format=file_format.name, place=place)
        return about

    monkeypatch.setattr(checked, "export", instead)
    output = tmp_path / "network"
    flags = ["--model=deit_tiny_patch16_224", f"--output={output}", "--data=folder:x"]
    small = ["--image_size=32", "--num_classes=5", "--reduction=evit", "--input=uint8", "--json"]
    assert export.main([*flags, *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("but for 1 with tied tokens")
    assert lines[-3] == (
        f"wrote {output}, 2.3 MB, and {output}.json: the logits of 50 images (the first of "
        "folder:x) differ by at most 2.3e-06"
    )
    assert json.loads(lines[-1]) == about
    assert given == {
        "name": "deit_tiny_patch16_224",
        "format": "stablehlo",
        "place": output,
        "dtype": "uint8",
        "data": "folder:x",
        "data_dir": "",
        "tolerance": 1e-4,
        "class_names": None,
    }
