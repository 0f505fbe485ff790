"""Attention as matmuls and as one kernel; what of it is lowered for NVIDIA's GPUs."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.interpreters import partial_eval as pe
from tiny import some_slow, tiny_config

from evovit_jax import create_model
from evovit_jax.hardware.platforms import compiling_for, device_kind
from evovit_jax.models import attention
from evovit_jax.models.attention import attend
from evovit_jax.models.variables import Skeleton
from evovit_jax.parallel import sharding
from evovit_jax.reduction import list_reductions
from evovit_jax.reduction.base import AttentionRequest, AttentionView

CALL = "__cudnn$fmhaSoftmax"


def make_qkv(tokens=7, dim=4):
    return tuple(jax.random.normal(jax.random.key(i), (2, 3, tokens, dim)) for i in range(3))


@pytest.mark.parametrize("tokens", [6, 7])
@pytest.mark.parametrize("needs", [frozenset(), frozenset({"class_row"})])
def test_the_fused_kernel_equals_the_matmuls(needs, tokens):
    def found(kernel):
        def loss(q, k, v):
            request = AttentionRequest(needs=needs)
            mixed, view = attend(q, k, v, scale=0.5, request=request, kernel=kernel)
            return jnp.sin(3 * mixed).sum(), (mixed, view)

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        return gradient(*make_qkv(tokens))

    plain, fused = found("matmul"), found("fused")
    assert jax.tree.structure(plain) == jax.tree.structure(fused)
    assert (fused[1][1].class_row is None) == (not needs)
    for a, b in zip(*map(jax.tree.leaves, (plain, fused)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_request_is_answered_whole():
    q, k, v = make_qkv()
    needs = frozenset({"class_row", "weights", "keys", "values"})
    request = AttentionRequest(needs=needs, normalise=lambda logits: jnp.ones_like(logits) / 7)
    mixed, view = attend(q, k, v, scale=0.5, request=request, kernel="fused")
    np.testing.assert_allclose(
        mixed, jnp.broadcast_to(v.mean(2, keepdims=True), v.shape), atol=1e-6
    )
    np.testing.assert_array_equal(view.class_row, view.weights[:, :, 0])
    np.testing.assert_array_equal(view.keys, k)
    np.testing.assert_array_equal(view.values, v)
    assert view.patch_scores(1).shape == (2, 6)
    assert AttentionView().weights is None


def test_what_one_kernel_cannot_do_is_left_to_matmuls():
    q, _, v = make_qkv()
    can_fuse = attention.can_fuse
    assert can_fuse(q, v, AttentionRequest(needs=frozenset({"class_row", "keys", "values"})))
    assert not can_fuse(q, v, AttentionRequest(needs=frozenset({"weights"})))
    assert not can_fuse(q, v, AttentionRequest(bias=jnp.zeros((1, 1, 1, 7))))
    assert not can_fuse(q, v, AttentionRequest(normalise=jnp.exp))
    assert not can_fuse(q, v[..., :2], AttentionRequest())  # LeViT's values are wider than its keys


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"class_row"})])
def test_biased_blocks_are_the_same_with_either_kernel(needs):
    bias = jax.random.normal(jax.random.key(4), (2, 1, 1, 7))
    request = AttentionRequest(needs=needs, bias=bias)
    (plain, view), (fused, fused_view) = (
        attend(*make_qkv(), scale=0.5, request=request, kernel=kernel)
        for kernel in ("matmul", "fused")
    )
    np.testing.assert_array_equal(plain, fused)
    if needs:
        np.testing.assert_array_equal(view.class_row, fused_view.class_row)
    else:
        assert view.class_row is None
        assert fused_view.class_row is None


@pytest.mark.parametrize(
    ("capability", "dtype", "dim", "has"),
    [
        ("9.0", "bfloat16", 64, True),
        ("8.0", "float16", 64, True),
        ("7.5", "float16", 64, False),  # T4
        ("gfx90a", "bfloat16", 64, False),  # AMD
        ("9.0", "float32", 64, False),
        ("9.0", "bfloat16", 60, False),
        ("9.0", "bfloat16", 256, False),
    ],
)
def test_which_hardware_has_a_kernel(monkeypatch, capability, dtype, dim, has):
    dtype = jnp.dtype(dtype)
    assert not attention.has_fused_kernel(dtype, dim)  # on the CPU that tests run on
    device = type("Device", (), {"compute_capability": capability, "device_kind": "a card"})()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    with compiling_for("gpu"):
        assert attention.has_fused_kernel(dtype, dim) is has
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # a GPU's process, for CPUs
    assert not attention.has_fused_kernel(dtype, dim)


@pytest.fixture
def hopper(monkeypatch):
    """An H100 as far as lowering can tell: JAX's checks of shapes run, nothing is executed."""
    kernel = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(kernel, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(kernel, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(kernel, "is_cuda_compute_capability_equal", lambda capability: False)
    monkeypatch.setattr(attention, "gpu_capability", lambda: (9, 0))


def lowered(name, reduction, *, train, mesh=None, platform="cuda"):
    """The program of a pass, or of its gradient, of a 16-bit network for an accelerator."""
    model = create_model(name, reduction, dtype="bfloat16", **SMALL.get(name, {}))
    skeleton = Skeleton(model)

    def loss(params, stats, images):
        model = skeleton.build(params, stats)
        logits, out = model(images, train=train, key=jax.random.key(0) if train else None)
        return logits.sum() + sum(out.losses.values())

    side, split = model.config.image_size, sharding.batch_sharding(mesh) if mesh else None
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32, sharding=split)
    program = jax.jit(jax.grad(loss) if train else loss)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        traced = program.trace(*Skeleton.variables(model), images)
        return traced.lower(lowering_platforms=(platform,)).as_text()


SMALL = {
    "deit_tiny_patch16_224": {"image_size": 64, "depth": 3, "num_classes": 4},
    "levit_128s": {"image_size": 64, "depth": (1, 1, 1), "num_classes": 4},
}
# Blocks of three whose attention is one kernel: biases and other normalisations are not.
FUSED = {
    "none": 3,
    "evo": 3,
    "evit,keep_rate=0.7": 3,
    "tome,r=2,proportional_attention=false": 3,
    "tome,r=2": 1,
    "topk": 3,
    "sinkhorn,keep_rate=0.5": 3,
}


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("reduction", some_slow(FUSED, {"evo", "tome,r=2"}))
def test_networks_are_lowered_for_a_gpu(hopper, reduction, train):
    text = lowered("deit_tiny_patch16_224", reduction, train=train)
    assert text.count(f"@{CALL}(") == FUSED[reduction]
    assert text.count(f"@{CALL}Backward(") == FUSED[reduction] * train


@pytest.mark.parametrize(
    ("kind", "has"), [("NVIDIA H100 80GB HBM3", True), ("Tesla T4", False), ("NVIDIA X1", False)]
)
def test_a_card_that_is_not_here_is_known_by_its_name(kind, has):
    with compiling_for("gpu"), device_kind(kind):
        assert attention.has_fused_kernel(jnp.dtype("bfloat16"), 64) is has


def test_only_training_makes_the_number_of_tokens_even(hopper):
    """17 tokens: a gradient's kernel takes 18."""
    for train, tokens in ((False, 17), (True, 18)):
        text = lowered("deit_tiny_patch16_224", "none", train=train)
        calls = [line for line in text.splitlines() if f"@{CALL}(" in line]
        assert len(calls) == 3
        assert all(f"tensor<2x{tokens}x3x64xbf16>" in line for line in calls)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("reduction", list_reductions())
def test_every_method_is_lowered(request, reduction, platform):
    if platform == "cuda":
        request.getfixturevalue("hopper")
    for train in (False, True):
        text = lowered("deit_tiny_patch16_224", reduction, train=train, platform=platform)
        assert "bf16" in text


@pytest.mark.parametrize("reduction", ["evo", "evit,keep_rate=0.7", "tome,r=2"])
def test_tpus_neither_sort_nor_index(reduction):
    model = create_model("deit_tiny_patch16_224", reduction, **SMALL["deit_tiny_patch16_224"])
    graphdef, state = nnx.split(model)

    def logits(state, images):
        return nnx.merge(graphdef, state)(images)[0]

    for platform, wanted in (("tpu", False), ("cpu", True)):
        with compiling_for(platform):
            traced = jax.make_jaxpr(logits)(state, jnp.zeros((2, 64, 64, 3)))
        program = str(pe.dce_jaxpr(traced.jaxpr, [True])[0])
        assert any(op in program for op in (" sort[", "top_k[", "scatter[", "gather[")) is wanted


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.slow
def test_levit_is_lowered_for_a_gpu(hopper, train):
    assert CALL not in lowered("levit_128s", "none", train=train)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_several_gpus_attend_each_to_its_own_images(hopper, train):
    mesh = sharding.make_mesh(tiny_config(), jax.devices()[:2])
    text = lowered("deit_tiny_patch16_224", "evo", train=train, mesh=mesh)
    assert text.count(f"@{CALL}(") == 3
    # Each sees one image of the two, 17 tokens and in training one more that its length leaves out.
    first = next(line for line in text.splitlines() if f"@{CALL}(" in line)
    types = first.rpartition(" : ")[2]
    assert types.count(f"tensor<1x{17 + train}x3x64xbf16>") == 3, types
    assert types.count("tensor<1xi32>") == 2 * train, types
