"""Exports eight networks, and makes the table of what each differs by.

    python experiments/export_networks.py --deit=DIR/deit_tiny_patch16_224.safetensors \
        --data=folder:DIR --output=DIR --formats=stablehlo,onnx

DeiT-tiny has the weights that are given, the others weights drawn by chance, with the spread that
trained ones have: what is compared is arithmetic. It goes on where it was stopped.
"""

import argparse
import contextlib
import io
import json
import pathlib
import time
import zlib

import jax
import numpy as np
from flax import nnx

from evovit_jax import export, tables
from evovit_jax.models import abstract_model
from evovit_jax.weights import save_weights

NETWORKS = (
    ("deit_tiny_patch16_224", "none"),
    ("deit_tiny_patch16_224", "evo"),
    ("deit_tiny_patch16_224", "evit,keep_rate=0.7"),
    ("deit_tiny_patch16_224", "tome,r=8"),
    ("deit_tiny_patch16_224", "topk,keep_rate=0.7"),
    ("levit_256", "none"),
    ("evo_levit_256", "evo"),
    ("evo_deit_small_patch16_224", "evo"),
)


def drawn(name: str, reduction: str) -> nnx.Module:
    """A network whose activations stay of the size that they have in a trained one."""
    graphdef, shapes = nnx.split(abstract_model(name, reduction))

    def value(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if shape.dtype != np.float32:
            return np.zeros(shape.shape, shape.dtype)
        if "'var'" in name:
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        spread, middle = 0.1, 1.0 if "'scale'" in name else 0.0
        if ("proj" in name or "fc2" in name) and "'scale'" in name:
            middle = 0.2  # what a block adds is a part of what it finds
        if "kernel" in name:
            spread = np.prod(shape.shape[:-1]) ** -0.5
        return rng.normal(middle, spread, shape.shape).astype(np.float32)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(value, shapes))


def main() -> None:
    """Writes the exports and their manifests, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deit", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--formats", default="stablehlo,onnx")
    flags = parser.parse_args()
    flags.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, reduction in NETWORKS:
        weights = flags.deit if "tiny" in name else flags.output / f"{name}.safetensors"
        if not pathlib.Path(weights).exists():
            save_weights(drawn(name, reduction), weights)
        for kind in flags.formats.split(","):
            place = flags.output / f"{name}+{reduction.split(',')[0]}.{kind}"
            log = place.with_name(f"{place.name}.seconds")
            if not log.exists():
                start = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    export.main([f"--model={name}", f"--weights={weights}", f"--data={flags.data}",
                                 f"--reduction={reduction}", f"--format={kind}",
                                 f"--output={place}"])  # fmt: skip
                log.write_text(f"{time.perf_counter() - start:.0f}")
            about = json.loads(place.with_name(f"{place.name}.json").read_text())
            check = about["check"]
            rows.append((name, reduction, kind, check["images"],
                         f"{check['largest_difference']:.1e}", f"{about['bytes'] / 1e6:.1f}",
                         f"{about['gmacs']:.3g}", log.read_text()))  # fmt: skip
            print(*rows[-1], flush=True)
    header = ("network", "reduction", "format", "images", "largest difference", "MB", "GMACs")
    print(tables.markdown((*header, "seconds"), rows))


if __name__ == "__main__":
    main()
