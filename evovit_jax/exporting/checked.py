"""An export that is kept only if it computes what the network computes."""

import hashlib
import importlib
import importlib.metadata
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from evovit_jax import flops, tables
from evovit_jax.benchmarking import identity
from evovit_jax.data import on_device
from evovit_jax.data.stored_files import expanded
from evovit_jax.errors import UserError
from evovit_jax.exporting.formats import Format, Images
from evovit_jax.exporting.pictures import of_data, of_two_photographs
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models.variables import variables
from evovit_jax.weights.files import whole_or_nothing

INPUTS = ("float32", "uint8")
BATCH = 16  # images at once in the check, after the first, which goes alone
# What the input is changed by, as a share of itself, to see whether scores are tied; and how often.
ROUNDING, ROUNDINGS = 1e-6, 16
MOST_BYTES = 2**31 - 2**24  # of weights in one file: protobuf and flatbuffers end at 2 GiB


def check_place(output: str, tolerance: float) -> pathlib.Path:
    """Where to write.

    Raises:
      UserError: there cannot be a file of that name, or the tolerance is no number.
    """
    if "://" in output:
        raise UserError(f"--output={output} is in an object store; write it here, and copy")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"--tolerance={tolerance} must be at least 0")
    place = expanded(output, "--output")
    if place.is_dir() and any(place.iterdir()) and not (place / "saved_model.pb").is_file():
        raise UserError(f"--output={output} is a folder with other files; choose another name")
    return place


def export(
    prepared: ReadyModel,
    file_format: Format,
    place: pathlib.Path,
    *,
    dtype: str = "float32",
    data: str | None = None,
    data_dir: str = "",
    tolerance: float = 1e-4,
    class_names: str | None = None,
) -> dict[str, Any]:
    """Writes a network, and beside it what `about` says of it, if it passes the check.

    Args:
      prepared: the network.
      file_format: what to write.
      place: of the file; `place.json` is beside it.
      dtype: "float32" for normalised images, "uint8" for pixels.
      data: whose first images are compared, as `--data` takes it; None for parts of the two
        photographs that scikit-learn has.
      data_dir: where TFDS data sets lie.
      tolerance: largest difference of a logit.
      class_names: a file with a name a line; None for what is known.

    Returns:
      What was written to `place.json`.

    Raises:
      UserError: the place or the data cannot be used, the format lacks an operator, or the logits
        differ. Nothing is written then.
    """
    size = sum(variable.size * 4 for variable in variables(prepared.model).values())
    if size > MOST_BYTES:
        raise UserError(f"{prepared.name} has {size / 1e9:.1f} GB of weights; a file holds 2 GiB")
    names = prepared.class_names(class_names) if prepared.num_classes or class_names else None
    pixels, seen = of_data(prepared, data, data_dir) if data else of_two_photographs(prepared)
    look, state = prepared.program
    images = Images(pixels.shape[1:], dtype)
    manifest = place.with_name(f"{place.name}.json")
    with whole_or_nothing(str(manifest)) as described, whole_or_nothing(str(place)) as temporary:
        written = pathlib.Path(temporary)
        said = file_format.write(lambda images: look(state, images)[0], images, written)
        found = compared(prepared, file_format.read(written), pixels, dtype, tolerance)
        about = {
            **described_network(prepared, images, names),
            "file": place.name,
            "format": file_format.name,
            **said,
            **fingerprint(written),
            "check": {
                "images": len(pixels),
                "of": seen,
                "batch_sizes": sorted({len(part) for part in parts(pixels)}),
                **found,
                "tolerance": tolerance,
            },
            "versions": versions(file_format),
        }
        pathlib.Path(described).write_text(tables.json_line(about, indent=1) + "\n")
    return about


def described_network(
    prepared: ReadyModel, images: Images, names: list[str] | None
) -> dict[str, Any]:
    """What a user of the file must know: the network, what goes in, and what comes out."""
    t = prepared.transform
    look, state = prepared.program
    logits, _ = jax.eval_shape(look, state, jax.ShapeDtypeStruct((1, *images.shape), images.dtype))
    return {
        "model": prepared.name,
        "reduction": prepared.reduction,
        "weights": prepared.weights and pathlib.Path(prepared.weights).name,
        "weights_sha256": identity.weights(prepared.model),
        "gmacs": float(f"{flops.gmacs(prepared.model):.4g}"),
        "input": {"name": "images", "shape": ["batch", *images.shape], "dtype": images.dtype},
        "output": {
            "name": "logits" if prepared.num_classes else "features",
            "shape": ["batch", logits.shape[1]],
            "dtype": str(logits.dtype),
        },
        "transform": {
            "resize_shorter_side": t.resize,
            "interpolation": t.interpolation,
            "centre_crop": t.image_size,
            "divide_by": 255,
            "mean": list(t.mean),
            "std": list(t.std),
            "inside": ["divide_by", "mean", "std"] if images.dtype == "uint8" else [],
        },
        "class_names": names,
    }


def versions(file_format: Format) -> dict[str, str]:
    """The versions of this package, and of the libraries that wrote and ran the file."""
    libraries = {name: importlib.import_module(name) for name in file_format.libraries}
    own = {"evovit_jax": importlib.metadata.version("evovit_jax")}
    return own | {name: library.__version__ for name, library in libraries.items()}


def fingerprint(path: pathlib.Path) -> dict[str, Any]:
    """The size and the hash of a file, or of all files of a folder in the order of their names."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    hashed, size = hashlib.sha256(), 0
    for file in files:
        with file.open("rb") as content:
            while block := content.read(1 << 24):
                hashed.update(block)
                size += len(block)
    return {"bytes": size, "sha256": hashed.hexdigest()}


def parts(pixels: UInt8[np.ndarray, "n s s c"]) -> Iterator[UInt8[np.ndarray, "b s s c"]]:
    """The first image alone, then `BATCH` at a time: a batch's size is free."""
    yield pixels[:1]
    for first in range(1, len(pixels), BATCH):
        yield pixels[first : first + BATCH]


def compared(
    prepared: ReadyModel,
    run: Callable[[np.ndarray], np.ndarray],
    pixels: UInt8[np.ndarray, "n s s c"],
    dtype: str,
    tolerance: float,
) -> dict[str, Any]:
    """How far the logits of an export are from the network's own.

    Returns:
      `largest_difference` of the images that the network decides, and the numbers of those that are
      `undecided`: see `is_undecided`.

    Raises:
      UserError: it is more than the tolerance, or more than a tenth is undecided.
    """
    largest, undecided, done = 0.0, [], 0
    for part in parts(pixels):
        wanted = np.asarray(prepared.look(part)[0])
        found = run(part if dtype == "uint8" else normalized(prepared, part))
        for i, difference in enumerate(np.abs(wanted - found).max(axis=1).tolist()):
            if difference <= tolerance:
                largest = max(largest, difference)
            # A difference that is no number is no agreement.
            elif math.isfinite(difference) and is_undecided(prepared, part[i], tolerance):
                undecided.append(done + i)
            else:
                raise UserError(
                    f"the logits of image {done + i + 1} of {len(pixels)} differ by "
                    f"{difference:.1e}, more than --tolerance={tolerance:g}; nothing was written"
                )
        done += len(part)
    if len(undecided) > len(pixels) / 10:
        raise UserError(
            f"{len(undecided)} of {len(pixels)} images have scores so close that they say nothing "
            "of the export; nothing was written: choose other images (--data)"
        )
    return {"largest_difference": largest, "undecided": undecided}


def is_undecided(prepared: ReadyModel, image: UInt8[np.ndarray, "s s c"], tolerance: float) -> bool:
    """Whether the network's own logits jump when its input is rounded in other ways.

    Two tokens whose scores are equal but for rounding change places then: which of them is kept, or
    merged, another runtime may decide otherwise, with the same right.
    """
    look, state = prepared.program
    rng = np.random.default_rng(0)
    given = normalized(prepared, image[None])
    noise = rng.choice(np.float32([-ROUNDING, ROUNDING]), (ROUNDINGS, *image.shape))
    noise[0] = 0
    logits = np.asarray(jax.jit(lambda images: look(state, images)[0])(given * (1 + noise)))
    return bool(np.abs(logits - logits[:1]).max() > tolerance)


def normalized(
    prepared: ReadyModel, pixels: UInt8[np.ndarray, "b s s c"]
) -> Float[np.ndarray, "b s s c"]:
    """What a user gives to a file that takes normalised images."""
    t = prepared.transform
    return np.asarray(jax.jit(lambda x: on_device.normalize(x, t.mean, t.std))(pixels))
