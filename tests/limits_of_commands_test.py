"""Limits of the process are found by every command, before anything is read or computed."""

import importlib

import pytest

from evovit_jax.errors import UserError
from evovit_jax.hardware import limits

COMMANDS = {
    "analyze": ["--data=folder:x", "--reductions=none", "--output=x"],
    "benchmark": ["--models=deit_tiny_patch16_224"],
    "calibrate": ["--data=folder:x", "--output=x"],
    "compare": ["--data=folder:x", "--reductions=none", "--output=x"],
    "convert": ["--input=x", "--output=y"],
    "evaluate": ["--data=folder:x"],
    "export": ["--output=x"],
    "predict": ["x.jpg"],
    "visualize": ["x.jpg", "--output=x"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_too_little_of_the_system_is_said_first(command, monkeypatch, tmp_path):
    def refuse():
        raise UserError("raise the limit")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(limits, "check", refuse)
    with pytest.raises(UserError, match="raise the limit"):
        importlib.import_module(f"evovit_jax.{command}").main(COMMANDS[command])
    assert not list(tmp_path.iterdir())
