"""The speed of exported networks beside the JAX models, and beside timm's own ONNX.

    python experiments/export_speed.py timm DIR/timm.onnx          # needs torch and timm
    python experiments/export_speed.py measure DIR/timm.onnx DIR   # needs the extra onnx

The first writes timm's dense DeiT-S by `torch.onnx.export`. The second exports DeiT-S and
Evo-DeiT-S into DIR, unless they are there, and times all of them in turns, in one process: what
else the machine does hits all alike. Weights are random; time does not depend on them.
"""

import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

NETWORKS = {"dense": "deit_small_patch16_224", "Evo": "evo_deit_small_patch16_224"}
BATCHES, ROUNDS, SECONDS = (1, 16), 7, 0.4


def write_timm(path: str) -> None:
    """timm's dense network as torch writes it, its batch open."""
    import timm
    import torch

    model = timm.create_model(NETWORKS["dense"]).eval()
    images = torch.zeros(2, 3, 224, 224)
    names = {"input_names": ["images"], "output_names": ["logits"]}
    batch = {"images": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        model, (images,), path, dynamo=False, opset_version=17, dynamic_axes=batch, **names
    )


def functions(timm: str, folder: pathlib.Path) -> dict[str, Callable]:
    """What is timed, by name: functions of normalised images, channels last."""
    import onnxruntime

    from evovit_jax import create_model, export
    from evovit_jax.inference.compiled import jit_inference

    found: dict[str, Callable] = {}
    for title, name in NETWORKS.items():
        place = folder / f"{name}.onnx"
        if not place.exists():
            export.main([f"--model={name}", "--format=onnx", f"--output={place}"])
        found[f"JAX, {title}"] = jit_inference(create_model(name))
        session = onnxruntime.InferenceSession(str(place))
        found[f"exported to ONNX, {title}"] = lambda x, s=session: s.run(None, {"images": x})[0]
    session = onnxruntime.InferenceSession(timm)
    channels_first = lambda x: np.ascontiguousarray(np.moveaxis(x, 3, 1))  # noqa: E731
    cache: dict[int, np.ndarray] = {}

    def run_timm(x: np.ndarray) -> np.ndarray:
        cache.setdefault(len(x), channels_first(x))
        return session.run(None, {"images": cache[len(x)]})[0]

    found["timm's ONNX, dense"] = run_timm
    return found


def measure(timm: str, folder: pathlib.Path) -> None:
    """Prints a table in Markdown: images a second, and the median of the ratios to JAX, dense."""
    ways = functions(timm, folder)
    print("| network | batch | images/s | over JAX, dense |\n|---|---|---|---|")
    for batch in BATCHES:
        images = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32)
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for run in ways.values():
            np.asarray(run(images))
        for _ in range(ROUNDS):
            for name, run in ways.items():
                start, count = time.perf_counter(), 0
                while time.perf_counter() - start < SECONDS:
                    np.asarray(run(images))
                    count += batch
                speeds[name].append(count / (time.perf_counter() - start))
        for name, own in speeds.items():
            ratios = [a / b for a, b in zip(own, speeds["JAX, dense"], strict=True)]
            row = (name, batch, f"{statistics.median(own):.1f}", f"{statistics.median(ratios):.2f}")
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "timm":
        write_timm(sys.argv[2])
    else:
        measure(sys.argv[2], pathlib.Path(sys.argv[3]))
