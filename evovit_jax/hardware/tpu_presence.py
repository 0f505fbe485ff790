"""Whether this machine has a TPU, whatever JAX was installed with.

JAX without the TPU's library computes on the CPU in silence.
"""

import importlib.util
import os
import pathlib
from collections.abc import Mapping

import jax

GOOGLE = "0x1ae0"  # the maker's number on the PCI bus
NETWORK = "0x02"  # how the class of a network card begins; Google's cloud has some of its own
# What Colab and Cloud TPUs set.
VARIABLES = ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_1VM", "COLAB_TPU_ADDR", "TPU_NAME")


def find(root: pathlib.Path = pathlib.Path("/"), environ: Mapping[str, str] = os.environ) -> str:
    """What shows that there is a TPU: a device's file, or a variable; "" where nothing does."""
    files = sorted(root.glob("dev/accel[0-9]*"))
    if not files and any(map(_is_tpu, root.glob("sys/bus/pci/devices/*"))):
        files = sorted(root.glob("dev/vfio/[0-9]*"))  # v5e and later
    if files:
        return f"/{files[0].relative_to(root)}"
    return next((name for name in VARIABLES if environ.get(name)), "")


def _is_tpu(device: pathlib.Path) -> bool:
    """Whether a device of the PCI bus is Google's, and no network card."""
    try:
        maker = (device / "vendor").read_text().strip()
    except OSError:
        return False
    kind = device / "class"
    return maker == GOOGLE and not (kind.is_file() and kind.read_text().startswith(NETWORK))


def missed(found: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Says in a line that there is a TPU which JAX does not use; "" where all is well.

    Nothing is said where `JAX_PLATFORMS` chooses other devices. JAX starts its devices.

    Args:
      found: what shows that there is a TPU, by default what `find` does.
      environ: the environment.
    """
    found = find(environ=environ) if found is None else found
    if not found or jax.default_backend() == "tpu" or environ.get("JAX_PLATFORMS"):
        return ""
    where = f"this machine has a TPU ({found}), but JAX computes on its {jax.default_backend()}"
    if importlib.util.find_spec("libtpu") is None:
        return f"{where}: pip install 'jax[tpu]=={jax.__version__}'"
    return f"{where}; perhaps another process uses the TPU"
