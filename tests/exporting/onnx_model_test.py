"""Networks and single operations as ONNX, run by onnxruntime: `pytest -m onnx`, extra `onnx`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled

from evovit_jax.errors import UserError
from evovit_jax.exporting.formats import Images
from evovit_jax.hardware.platforms import compiling_for
from evovit_jax.inference import compiled
from evovit_jax.models.variables import Skeleton

pytestmark = pytest.mark.onnx

FLAT = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3}
PYRAMID = {
    "image_size": 64,
    "embed_dim": (16, 24, 32),
    "depth": (2, 2, 2),
    "num_heads": (2, 2, 2),
    "key_dim": 8,
}
NETWORKS = [
    ("deit_tiny_patch16_224", "none", FLAT),
    ("evo_deit_tiny_patch16_224", "evo,first_block=1", FLAT),
    ("evo_deit_tiny_patch16_224", "evo,first_block=1,selection=layer", FLAT),
    ("deit_tiny_patch16_224", "evit,keep_rate=0.7,locations=1:2", FLAT),
    ("deit_tiny_patch16_224", "evit,keep_rate=0.7,locations=1:2,fuse=false", FLAT),
    ("deit_tiny_patch16_224", "tome,r=4", FLAT),
    ("deit_tiny_patch16_224", "topk,keep_rate=0.7,locations=1:2", FLAT),
    ("deit_tiny_patch16_224", "dynamicvit,locations=1:2", FLAT),
    ("deit_tiny_distilled_patch16_224", "shift,locations=1", FLAT),
    ("levit_128s", "none", PYRAMID),
    ("evo_levit_128s", "evo", PYRAMID),
]


def of_pixels(name: str, reduction: str, **fields):
    model = filled(name, reduction, num_classes=7, **fields)
    look, fold = compiled.of_pixels(model, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    state = fold(*Skeleton.variables(model))
    return lambda images: look(state, images)[0]


def exported(function, shape, dtype, place):
    """A function of images as onnxruntime runs it."""
    from evovit_jax.exporting import onnx_model

    onnx_model.write(function, Images(shape, dtype), place)
    return onnx_model.read(place)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    ("name", "reduction", "fields"), NETWORKS, ids=lambda value: str(value)[:40]
)
def test_a_network_computes_the_same_at_any_batch(name, reduction, fields, dtype, tmp_path):
    logits, side = of_pixels(name, reduction, **fields), fields["image_size"]
    run = exported(logits, (side, side, 3), dtype, tmp_path / "network.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, side, side, 3)).astype(dtype)
    images = images if dtype == "uint8" else images / np.float32(100) - 1
    with compiling_for("cpu"):
        wanted = np.asarray(jax.jit(logits)(images))
    for batch in (5, 2, 1):
        np.testing.assert_allclose(run(images[:batch]), wanted[:batch], rtol=0, atol=1e-5)


def test_the_graph_names_what_goes_in_and_out_and_is_small(tmp_path):
    import onnx

    exported(of_pixels(*NETWORKS[0][:2], **FLAT), (32, 32, 3), "uint8", tmp_path / "x.onnx")
    graph = onnx.load(tmp_path / "x.onnx").graph
    dims = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    ]
    assert [value.name for value in (*graph.input, *graph.output)] == ["images", "logits"]
    assert dims == [["batch", 32, 32, 3], ["batch", 7]]
    kinds = [node.op_type for node in graph.node]
    # Two norms a block and one at the end; what is one function in ONNX is one node.
    assert [kinds.count(kind) for kind in ("LayerNormalization", "Softmax", "Gelu")] == [7, 3, 3]
    assert len(kinds) < 120


ROWS = jnp.arange(12, dtype=jnp.float32).reshape(3, 4) / 7 - 0.5
OPERATIONS = {
    "elementwise": lambda x: jnp.tanh(x) + jnp.exp(-jnp.abs(x)) * jnp.sqrt(x * x + 1) / (x**2 + 2),
    "more": lambda x: jax.lax.erfc(x) - jax.lax.erf(x) + jax.lax.rsqrt(x * x + 1) + jnp.sign(x),
    "powers": lambda x: x**3 + jnp.log1p(x * x) + jnp.expm1(x / 4) + jax.nn.sigmoid(x),
    "rounding": lambda x: jnp.floor(3 * x) - jnp.ceil(2 * x) + jnp.clip(x, -0.2, 0.3),
    "comparisons": lambda x: jnp.where((x > 0) & ~(x != 0.5) | (x <= -1), x, 2 * x),
    "integers": lambda x: (x * 10).astype(jnp.int32) // 3 + jnp.maximum(4, 3),
    "any and all": lambda x: (x > 0).any(axis=1) | (x < 9).all(axis=(1, 2))[:, None],
    "reductions": lambda x: x.sum(axis=1) - x.max(axis=1) * x.min(axis=1) + x.prod(axis=1),
    "extremes": lambda x: x.argmax(axis=2) - x.argmin(axis=2),
    "repeated": lambda x: jnp.concatenate([x, jnp.broadcast_to(ROWS[None], (x.shape[0], 3, 4))], 1),
    "sum of repeated": lambda x: jnp.broadcast_to(x[:, :, :1], x.shape).sum(axis=2),
    "axes": lambda x: jnp.transpose(x, (0, 2, 1)).reshape(x.shape[0], 2, 6)[:, ::-1][:, :, 1::2],
    "parts": lambda x: jnp.stack(jnp.split(x, 2, axis=2), axis=1)[:, 1, :2],
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1)), constant_values=3),
    "one row": lambda x: x[:, 1] + x[:, -1, :],
    "rows": lambda x: jnp.take(x, jnp.array([2, 0]), axis=1),
    "rows of each": lambda x: jnp.take_along_axis(x, x.argmax(1)[:, None], axis=1, mode="clip"),
    "largest": lambda x: jnp.stack([k.astype(jnp.float32) for k in jax.lax.top_k(x, 2)], axis=1),
    "matrices": lambda x: jnp.einsum("bij,kj->bik", x, ROWS) @ x,
    "of each image": lambda x: jnp.einsum("bij,bkj->bki", x, x),
    "sums first": lambda x: jnp.einsum("bij,i->bj", x, ROWS[:, 0]),
    "heads": lambda x: jnp.einsum("bhc,dhc->bd", x, jnp.stack([ROWS, -ROWS])),
    "constant left": lambda x: jnp.einsum("ki,bij->bkj", ROWS[:, :3], x),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_computes_the_same(name, tmp_path):
    function = OPERATIONS[name]
    run = exported(lambda images: function(images[..., 0]), (3, 4, 1), "float32", tmp_path / "x")
    x = np.random.default_rng(1).normal(size=(5, 3, 4)).astype(np.float32)
    for batch in (5, 1):
        wanted = function(jnp.asarray(x[:batch]))
        found = run(x[:batch, ..., None])
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + 1, x), "scan"),
        (lambda x: jnp.linalg.inv(x[:, :3, :3]), "lu"),
        (
            lambda x: jnp.arange(x.shape[0], dtype=jnp.float32)[:, None] + x[:, 0],
            "iota over the batch",
        ),
    ],
)
def test_what_onnx_has_no_operator_for_is_named_and_nothing_written(function, operation, tmp_path):
    with pytest.raises(UserError, match=f"no operator here for JAX's {operation}; take"):
        exported(lambda images: function(images[..., 0]), (3, 4, 1), "float32", tmp_path / "x")
    assert not list(tmp_path.iterdir())
