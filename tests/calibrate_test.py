"""The calibrate command: what it prints, and what it refuses."""

import json

import pytest

from evovit_jax import calibrate
from evovit_jax.errors import UserError
from evovit_jax.inference import calibration

SPEC = "patch_slimming,kept=9:4:0"
FIGURES = {"model": "x", "reduction": SPEC, "gmacs": 0.5, "examples": 8, "output": "slim"}


def test_the_command_ends_with_json(capsys, monkeypatch):
    seen = {}
    monkeypatch.setattr(calibrate.model_flags, "prepare_from", lambda flags: flags)
    monkeypatch.setattr(
        calibration,
        "calibrate",
        lambda flags, *given, **more: seen.update(vars(flags) | more) or FIGURES,
    )
    flags = ["--model=deit_tiny_patch16_224", "--data=folder:x", "--output=slim.safetensors"]
    assert calibrate.main([*flags, "--images=8", "--json"]) == 0
    first, spec, last = capsys.readouterr().out.splitlines()
    assert first == "wrote slim.safetensors: x, 0.500 GMACs an image"
    assert spec == f"--reduction={SPEC}"
    assert json.loads(last) == FIGURES
    assert (seen["images"], seen["allow_missing"]) == (8, "reducer/.*")


def test_a_bad_batch_ends_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(calibrate.model_flags, "prepare_from", None)
    with pytest.raises(UserError, match="batch_size=-8 must be at least 1"):
        calibrate.main(["--data=folder:x", "--output=x.safetensors", "--batch_size=-8"])


def test_a_wrong_flag_is_a_line():
    with pytest.raises(UserError, match="unrecognized arguments: --imges=8; --help shows all"):
        calibrate.main(["--data=folder:x", "--output=x.safetensors", "--imges=8"])
