"""A TPU is found by what a machine shows of it, and said where JAX does not use it."""

import importlib.util

import jax
import pytest

from evovit_jax.hardware import tpu_presence


def machine(root, *files, **pci):
    """A tree of empty device files, and of PCI devices by address: (vendor, class)."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    for address, (vendor, kind) in pci.items():
        folder = root / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    return root


@pytest.mark.parametrize(
    ("files", "pci", "found"),
    [
        (["dev/accel0", "dev/accel1"], {}, "/dev/accel0"),
        (["dev/vfio/0", "dev/vfio/vfio"], {"a": ("0x1ae0", "0x088000")}, "/dev/vfio/0"),
        (["dev/vfio/0"], {"a": ("0x10de", "0x030200")}, ""),  # a GPU given to a virtual machine
        (["dev/vfio/0"], {"a": ("0x1ae0", "0x020000")}, ""),  # Google's network card
        (["dev/accel/accel0"], {}, ""),  # another maker's
        ([], {"a": ("0x1ae0", "0x088000")}, ""),  # a TPU that nobody may open
        ([], {}, ""),
    ],
)
def test_what_a_machine_shows(tmp_path, files, pci, found):
    assert tpu_presence.find(machine(tmp_path, *files, **pci), {}) == found


@pytest.mark.parametrize("name", ["TPU_ACCELERATOR_TYPE", "COLAB_TPU_1VM"])
def test_what_the_environment_shows(tmp_path, name):
    assert tpu_presence.find(tmp_path, {name: "v5e-8"}) == name
    assert tpu_presence.find(tmp_path, {name: ""}) == ""


def test_an_unused_tpu_is_said_in_a_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = tpu_presence.missed("/dev/accel0", {})
    assert line == (
        "this machine has a TPU (/dev/accel0), but JAX computes on its cpu: "
        f"pip install 'jax[tpu]=={jax.__version__}'"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert tpu_presence.missed("/dev/accel0", {}).endswith("; perhaps another process uses the TPU")


def test_nothing_is_said_where_all_is_well(monkeypatch):
    assert tpu_presence.missed("", {}) == ""
    assert tpu_presence.missed("/dev/accel0", {"JAX_PLATFORMS": "cpu"}) == ""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert tpu_presence.missed("/dev/accel0", {}) == ""
