"""Every output of every golden file, against the official code that made it.

`pytest tests/parity_test.py --golden-dir=DIR` checks all files of a folder, one test an output. A
golden file is an `.npz` with `meta` (JSON: family, method, model, reduction, outputs),
`images_nchw`, the tensors of the network as `param/NAME`, and the outputs by name;
`randaugment_ops.npz` has images instead. The largest absolute difference must be under 1e-4.
The model in `meta` is the sizes of a family below, or what
`create_model` takes (`name`, and fields of its config).
A family that is not there has a module of its name in `golden_networks/`, with `network(sizes,
reducer, **variant)`, which takes out of `sizes` what it reads, and `value(output, logits, out)`,
what an output is, or None where it is one of those below.
A file or a field that nothing here understands is a failure, never a skip.
"""

import functools
import importlib
import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_settings import names_its_own, reducer_fields, reducer_of
from PIL import Image

from evovit_jax.data import randaugment
from evovit_jax.models import create_model
from evovit_jax.models.levit import LeViT, LeViTConfig
from evovit_jax.models.lvvit import LVViT, LVViTConfig
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.vit import VisionTransformer, ViTConfig
from evovit_jax.reduction import merge_matrices
from evovit_jax.weights import from_torch

HERE = pathlib.Path(__file__).parent / "golden"
# Near relatives of other files, which the quick run leaves out.
VARIANTS_OF_A_FILE = {
    *("pit_distilled", "pvt_v2_linear", "swin_small_map", "crossvit_dagger", "dinov2", "dinov3"),
    *("tokenreduction_evit", "tokenreduction_tome", "tokenreduction_topk", "tokenreduction_sit"),
    *("tokenreduction_patchmerger", "tokenreduction_heuristic", "evit_drop", "etps"),
    *("dynamicvit_lvvit", "dinov2_giant", "dinov3_plus_qkvb", "dynamic_convnext"),
    *("crossvit", "cvt", "volo", "convit", "lookupvit", "swin", "tokenreduction_sinkhorn"),
}
TOLERANCE = 1e-4


def pytest_generate_tests(metafunc):
    folder = pathlib.Path(metafunc.config.getoption("--golden-dir") or HERE)
    files = sorted(folder.glob("*.npz"))
    if "output" not in metafunc.fixturenames:
        return
    cases = []
    for file in files:
        for number, output in enumerate(outputs_of(file)):
            # Every output of a folder that is asked for; of our own the first of each file in the
            # quick run, since most compile a program of their own.
            rest = (number or file.stem in VARIANTS_OF_A_FILE) and folder == HERE
            marks = [pytest.mark.slow] if rest else []
            cases.append(pytest.param(file, output, id=f"{file.stem}::{output}", marks=marks))
    metafunc.parametrize(("file", "output"), cases)


def test_output_equals_official_code(file, output):
    golden = load(file)
    if "meta" not in golden:
        assert is_randaugment(golden), f"{file}: nobody knows how to check a file without meta"
        check_randaugment(golden, output)
        return
    expected = golden[output]
    actual = np.asarray(computed(file, output))
    assert actual.shape == expected.shape
    if np.issubdtype(expected.dtype, np.integer):
        np.testing.assert_array_equal(actual, expected)
    else:
        assert np.abs(actual - expected).max() < TOLERANCE


# --- reading a golden file ----------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def load(file: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def meta_of(file: pathlib.Path) -> dict[str, Any]:
    return json.loads(str(load(file)["meta"]))


def outputs_of(file: pathlib.Path) -> list[str]:
    """The names of what a file has to compare with, each one test."""
    golden = load(file)
    inputs = ("meta", "image", "images_nchw", "param/")
    return [name for name in golden if not name.startswith(inputs) and not name.endswith("/arg")]


# --- the networks of the files ------------------------------------------------------------------


def vit(sizes: dict[str, Any], reducer: dict[str, Any], **others: Any) -> VisionTransformer:
    names = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    config = ViTConfig(
        **{name: sizes.pop(name) for name in names},
        mlp_ratio=sizes.pop("mlp_ratio"),
        norm_eps=sizes.pop("layer_norm_eps"),
        **others,
    )
    assert sizes.pop("gelu") == "erf"
    return VisionTransformer(config, reducer, rngs=nnx.Rngs(0))


def lvvit(sizes: dict[str, Any], reducer: dict[str, Any]) -> LVViT:
    names = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    config = LVViTConfig(
        **{name: sizes.pop(name) for name in names},
        **{name: sizes.pop(name) for name in ("mlp_ratio", "qkv_bias", "skip_lam")},
        norm_eps=sizes.pop("layer_norm_eps"),
    )
    assert sizes.pop("gelu") == "erf"
    return LVViT(config, reducer, rngs=nnx.Rngs(0))


def levit(sizes: dict[str, Any], reducer: dict[str, Any], **others: Any) -> LeViT:
    names = ("image_size", "num_classes", "key_dim", "attn_ratio", "mlp_ratio")
    lists = ("embed_dim", "num_heads", "depth")
    config = LeViTConfig(
        **{name: sizes.pop(name) for name in names},
        **{name: tuple(sizes.pop(name)) for name in lists},
        distilled=sizes.pop("distillation"),
        freeze_norm=True,  # the training outputs were made on running statistics
        **others,
    )
    # What cannot be anything else here.
    fixed = {
        "patch_size": 16,
        "subsample_stride": 2,
        "subsample_attn_ratio": 4,
        "subsample_heads": [dim // config.key_dim for dim in config.embed_dim[:-1]],
        "batch_norm_eps": 1e-5,
        "activation": "hardswish",
    }
    assert {name: sizes.pop(name) for name in fixed} == fixed
    return LeViT(config, reducer, rngs=nnx.Rngs(0))


# What builds the network of a family, of its sizes in meta and the reduction.
FAMILIES = {
    "deit": vit,
    "dynamicvit": vit,
    "evit": vit,
    "evo_deit": functools.partial(vit, pool="avg"),
    "evo_levit": functools.partial(levit, class_token=True),
    "levit": levit,
    "lvvit": lvvit,
    "tokenreduction": vit,
}


def described(family: str) -> Any | None:
    """The module of a family: what builds its network, and what its outputs are."""
    module = f"golden_networks.{family}"
    return importlib.import_module(module) if importlib.util.find_spec(module) else None


def network(
    file: pathlib.Path, reducer: dict[str, Any], variant: Mapping[str, str] | None = None
) -> nnx.Module:
    """The network of a file, its tensors loaded; `variant` is what an output changes of it."""
    model = nnx.eval_shape(lambda: made(file, reducer, variant))
    tensors = {name[6:]: value for name, value in load(file).items() if name.startswith("param/")}
    fields = model.reducer.fields if hasattr(model, "reducer") else None
    # A dense network lies in the file of a reduced one, beside what the reduction learned.
    spare = r"(score_predictor|.*\bgumbel)\..*" if reducer["name"] == "none" else False
    if hasattr(family := described(meta_of(file)["family"]), "spare"):
        spare = family.spare(reducer)
    from_torch(model, tensors, allow_missing=spare)
    if fields is not None:  # what the file says counts, not what its tensors suggest
        model.reducer.fields = fields
    return model


def made(
    file: pathlib.Path, reducer: dict[str, Any], variant: Mapping[str, str] | None
) -> nnx.Module:
    """The network of a file as its sizes say."""
    meta = meta_of(file)
    sizes, dense = dict(meta["model"]), reducer["name"] == "none"
    if "name" in sizes:
        model = create_model(reduction="none" if dense else reducer, **sizes)
    elif family := described(meta["family"]):
        model = family.network(sizes, reducer, **(variant or {}))
        assert not sizes, f"{file}: sizes that nobody reads: {sorted(sizes)}"
    else:
        assert meta["family"] in FAMILIES, f"{file}: unknown family {meta['family']!r}"
        model = FAMILIES[meta["family"]](sizes, reducer)
        assert not sizes, f"{file}: sizes that nobody reads: {sorted(sizes)}"
    return model


# --- outputs ------------------------------------------------------------------------------------


def computed(file: pathlib.Path, name: str) -> jax.Array:
    """What the network here returns for an output of a file."""
    meta = meta_of(file)
    output = meta["outputs"][name]
    reducer = reducer_of(meta, output)
    if output.get("mode") == "calibration":
        return calibrated(file, output, reducer)
    changes = {key: output[key] for key in ("selection", "tradeoff") if key in output}
    if output.get("reduction") and not names_its_own(output):
        changes |= reducer_fields(output["reduction"], meta)
    train = output.get("mode", "eval").startswith("train")
    variant = {key: output[key] for key in VARIANTS if key in output}
    images = output.get("images", "images_nchw")
    logits, out = forward(file, images, *map(frozen, (reducer, changes, variant)), train)
    family = described(meta["family"])
    read = family.value(output, logits, out) if family else None
    if read is not None:
        return read
    return value_of(name, output, logits, out, train)


# What an output may change of the network of its file.
VARIANTS = ("activation", "resizing")


def calibrated(file: pathlib.Path, output: dict[str, Any], reducer: dict[str, Any]) -> np.ndarray:
    """A Prune-and-Merge file's scores, or of its scores a location's matrix."""
    golden, model = load(file), network(file, reducer)
    if "labels" in output:
        images = jnp.asarray(golden["images_nchw"].transpose(0, 2, 3, 1))
        return merge_matrices.position_scores(model, [(images, jnp.asarray(output["labels"]))])
    merge_matrices.calibrate(model.reducer, golden["scores"])
    matrices = model.reducer.matrices[reducer["locations"].index(output["block"])]
    name = {"merge": "merge_matrix", "its": "recover_matrix", "1": "token_mask"}
    return getattr(matrices, name[output["value"].split()[0]])[...]


def frozen(fields: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(fields.items()))


@functools.lru_cache(maxsize=2)
def forward(
    file: pathlib.Path, images: str, reducer: tuple, changes: tuple, variant: tuple, train: bool
) -> tuple[jax.Array, Outputs]:
    model = network(file, dict(reducer), dict(variant))
    run = jax.jit(lambda images: model(images, train=train, reduction=dict(changes)))
    return run(jnp.asarray(load(file)[images].transpose(0, 2, 3, 1)))


TRAINING_HEADS = {"class_token": "cls", "head_dist": "dist", "head_cls": "cls"} | {
    "head_cls_dist": "cls_dist"
}
MAIN_HEADS = (
    "pooled",
    "head",
    "mean of head and head_dist",
    "class logits + 0.5 * max over patches of the auxiliary logits",
)
KEEP_MASKS = {"keep mask at the first location": 0, "second": 1, "third": 2}


def input_of_each_output(out: Outputs) -> np.ndarray:
    """Which input token each token of the finished set is, where tokens only leave."""
    source = np.asarray(out.token_maps[-1])
    found = np.full((len(source), source.max() + 1), -1)
    for image, place in np.argwhere(source >= 0):
        found[image, source[image, place]] = place
    return found


# What an output is, by words of its description.
READINGS = {
    "the token sizes after the last block": lambda out: out.aux["sizes"],
    "scales of the tokens after the last block": lambda out: out.aux["sizes"],
    "which input token (class token 0) each": input_of_each_output,
    "logits of the auxiliary head of every module": lambda out: jnp.stack(
        [out.aux_logits[f"cropr_{i}"] for i in range(len(out.aux_logits))], axis=1
    ),
    "all tokens [batch, tokens, channels] after the last norm": lambda out: out.features,
    "all tokens after the last norm, class token first": lambda out: out.features,
    "the mask after the embedding": lambda out: out.aux["mask"].astype(int),
    "1 for a token kept in that group": lambda out: out.aux["policies"],
    "the interpreter's probabilities": lambda out: out.aux["probabilities"],
    "1 - sum over groups of (1 - kept share)": lambda out: out.aux["flops_share"],
    "zero where the last policy is 0": lambda out: (
        out.features * out.aux["policies"][:, -1, :, None]
    ),
    "10000 times the unbiased variance": lambda out: 10000 * out.aux["variance"],
    "1 where the image's tokens were pooled": lambda out: out.aux["pooled"].astype(int),
}


def value_of(
    name: str, output: dict[str, Any], logits: jax.Array, out: Outputs, train: bool
) -> jax.Array:
    """The part of a pass that an output of a file is."""
    head, value = output.get("head"), output.get("value", "logits")
    if "output token that holds each input token" in value:
        return jnp.maximum(out.token_maps[-1], -1)
    for words, reading in READINGS.items():
        if words in value:
            return reading(out)
    if value in KEEP_MASKS:
        return out.aux["decisions"][:, KEEP_MASKS[value]]
    if value == "last keep mask":
        return out.aux["decisions"][:, -1, :, None]
    if value.startswith("patch features after the last norm"):
        return out.features[:, 1:]
    if head == "patch logits":
        return out.aux["patch_logits"]
    if head == "class logits":
        return out.aux["class_logits"]
    assert value == "logits", f"{name}: nobody knows the value {value!r}"
    if train and head in TRAINING_HEADS:
        return out.aux_logits[TRAINING_HEADS[head]]
    assert head is None or head in MAIN_HEADS, f"{name}: nobody knows the head {head!r}"
    return logits


# --- timm's RandAugment -------------------------------------------------------------------------


def is_randaugment(golden: dict[str, np.ndarray]) -> bool:
    return "image" in golden and any(name.endswith("/arg") for name in golden)


def check_randaugment(golden: dict[str, np.ndarray], case: str) -> None:
    """`OP/magM/SIGN`: the argument and, to the pixel, the image of an operation."""
    name, magnitude, *sign = case.split("/")
    operation = name.removesuffix("Increasing")
    sign = -1 if sign == ["minus"] else 1
    argument = randaugment.argument(operation, float(magnitude.removeprefix("mag")), sign)
    expected = golden[f"{case}/arg"]
    arguments = [] if argument is None else [argument]
    assert arguments == pytest.approx(expected.tolist())
    image = Image.fromarray(golden["image"])
    image = randaugment.OPERATIONS[operation](image, argument, randaugment.Drawing())
    np.testing.assert_array_equal(np.asarray(image), golden[case])


def test_a_file_of_an_unknown_family_fails(tmp_path):
    file = tmp_path / "strange.npz"
    meta = {"family": "vig", "method": None, "model": {}, "outputs": {"logits": {}}}
    np.savez(file, meta=json.dumps(meta), images_nchw=np.zeros((1, 3, 4, 4)), logits=np.zeros(1))
    assert outputs_of(file) == ["logits"]
    with pytest.raises(AssertionError, match="unknown family 'vig'"):
        test_output_equals_official_code(file, "logits")
    bare = tmp_path / "bare.npz"
    np.savez(bare, logits=np.zeros(1))
    with pytest.raises(AssertionError, match="without meta"):
        test_output_equals_official_code(bare, "logits")
