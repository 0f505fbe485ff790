"""timm's process, with a child that answers as timm's would, without PyTorch."""

import sys

import pytest

from evovit_jax.benchmarking import timm_models
from evovit_jax.errors import UserError

CHILD = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if "make" in request:
        known = request["make"]["model"].startswith("deit")
        print(json.dumps({"number": 0 if known else None, "compile_seconds": 0.5}), flush=True)
    elif "run" in request:
        print(json.dumps({"seconds": 0.25}), flush=True)
    else:
        print(json.dumps({"peak_memory_mb": None}), flush=True)
"""


@pytest.fixture
def fake_timm(monkeypatch):
    """A child that answers as timm's would, without PyTorch."""
    real = timm_models.subprocess.Popen
    monkeypatch.setattr(timm_models.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(
        timm_models.subprocess, "Popen", lambda _, **k: real([sys.executable, "-c", CHILD], **k)
    )


def test_a_missing_peer_names_the_extra(monkeypatch):
    monkeypatch.setattr(timm_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'evovit_jax\[torch\]'"), timm_models.start():
        pass


def test_the_child_answers_one_line_a_request(fake_timm):
    with timm_models.start() as peer:
        assert peer.make(model="evo_x")["number"] is None
        assert peer.make(model="deit") == {"number": 0, "compile_seconds": 0.5}
        assert peer.measure(0)(3) == 0.25
        assert peer.peak_memory_mb(0) is None


def test_a_child_that_ends_is_an_error(fake_timm, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "CHILD", "")
    with timm_models.start() as peer, pytest.raises(UserError, match="ended without an answer"):
        peer.make(model="deit")
