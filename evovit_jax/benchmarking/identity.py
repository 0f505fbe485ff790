"""What the result of a comparison depends on: weights, images, code, libraries and device.

Tested in tests/benchmarking/records_test.py.
"""

import functools
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import evovit_jax
from evovit_jax import reduction
from evovit_jax.benchmarking.records import digest
from evovit_jax.data.source import Source
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models.variables import Skeleton


@functools.cache
def code() -> dict[str, str]:
    """A hash of this package's files, and the versions of what computes."""
    hashed = hashlib.sha256()
    root = pathlib.Path(evovit_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        hashed.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return {"package": hashed.hexdigest(), "jax": jax.__version__, "numpy": np.__version__}


def network(model: nnx.Module, spec: str) -> dict[str, Any]:
    """What a network is, without its weights; `spec` is its reduction."""
    _, fields = reduction.parse(spec)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    settings = {"reduction": spec, "fields": repr(sorted(fields.items()))}
    return {"class": kind, "config": repr(model.config), "code": code(), **settings}


def weights(model: nnx.Module) -> str:
    """A hash of the values of a model's variables, with their names and shapes."""
    hashed = hashlib.sha256()
    for values in Skeleton.variables(model):
        for name, value in sorted(values.items()):
            array = np.ascontiguousarray(jax.device_get(value))
            hashed.update(f"{name} {array.dtype} {array.shape}\n".encode())
            hashed.update(array.tobytes())
    return hashed.hexdigest()


def evaluated(prepared: ReadyModel, config: ConfigDict, images: str) -> dict[str, Any]:
    """The key of what one model makes of all images, which `images` identifies."""
    classes = prepared.classes and np.ascontiguousarray(prepared.classes.embeddings).tobytes()
    return network(prepared.model, prepared.reduction) | {
        "weights": weights(prepared.model),
        "transform": repr(prepared.transform),
        "classes": classes and hashlib.sha256(classes).hexdigest(),
        "max_image_pixels": prepared.max_image_pixels,
        "images": images,
        "batch_size": config.eval_batch_size,
        "devices": [device.device_kind for device in jax.devices()],
    }


def images(source: Source) -> str:
    """A hash of what tells images apart without reading them: names, labels, sizes and times."""
    own = getattr(source, "identity", None)
    if own is None:
        return digest([source.name, [source.describe(i) for i in range(len(source))]])
    return digest([source.num_classes, list(own())])
