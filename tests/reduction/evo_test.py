"""Evo-ViT against a plain-NumPy reference that loops over images and tokens, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import normal, shapes_of, some_slow

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.reduction import token_counts
from evovit_jax.reduction.evo import enter_slow_path, leave_slow_path, representative_weights
from evovit_jax.reduction.tokens import group_sizes, start_tokens

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 12,
    "depth": 6,
    "num_heads": 3,
    "num_classes": 5,
}


def tiny(reduction="evo", **overrides):
    model = evovit_jax.create_model(
        "evo_deit_tiny_patch16_224", reduction, **{**TINY, **overrides}, seed=3
    )
    for block in model.blocks:  # attention that is far from uniform
        block.attn.qkv.kernel[...] *= 15
    return model


def run(model, batch, **settings):
    return jax.jit(lambda batch: model(batch, **settings))(batch)


def images(batch=3, size=16):
    return jax.random.normal(jax.random.key(7), (batch, size, size, 3))


# --- a reference in plain NumPy, one image and one token at a time ---------------------------


def layer_norm(x, norm):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * np.array(norm.scale[...]) + np.array(norm.bias[...])


def linear(x, layer):
    return x @ np.array(layer.kernel[...]) + np.array(layer.bias[...])


def reference_block(x, block):
    """One block over one image's tokens `[n, d]`: the new tokens, class attention `[heads, n]`."""
    n, d = x.shape
    heads = block.attn.heads
    q, k, v = np.split(linear(layer_norm(x, block.norm1), block.attn.qkv), 3, axis=-1)
    width = d // heads
    mixed, class_rows = np.zeros((n, d)), np.zeros((heads, n))
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(n):
            logits = k[:, part] @ q[i, part] * width**-0.5
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            mixed[i, part] = weights @ v[:, part]
            if i == 0:
                class_rows[h] = weights
    x = x + linear(mixed, block.attn.proj)
    hidden = linear(layer_norm(x, block.norm2), block.mlp.fc1)
    erf = np.vectorize(__import__("math").erf)
    hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    return x + linear(hidden, block.mlp.fc2), class_rows


def reference_logits(model, image, *, starts, keep, alpha, layerwise, fast_update):
    """Evo-ViT of one image `[h, w, c]`, from the rules of the paper; returns logits, kept sets."""
    x = np.array(model.embed(image[None])[0], np.float64)
    score, kept_sets, depth = None, [], len(model.blocks)
    slow = None  # the indices of the patch tokens on the slow path
    for i, block in enumerate(model.blocks):
        if (layerwise and i >= starts[0]) or i in starts:
            count = int((len(x) - 1) * keep)
            slow = sorted(range(len(x) - 1), key=lambda j: (-score[j], j))[:count]
            kept_sets.append(sorted(slow))
            others = [j for j in range(len(x) - 1) if j not in slow]
            total = sum(score[j] for j in others)
            summary = sum(score[j] / total * x[1 + j] for j in others)
            entered = summary.copy()
            rows = [x[0]] + [x[1 + j] for j in slow] + ([summary] if fast_update else [])
        if slow is None:
            x, class_rows = reference_block(x, block)
            score = class_rows[:, 1:].mean(0)
            continue
        out, class_rows = reference_block(np.stack(rows), block)
        rows = list(out)
        for place, j in enumerate(slow):
            score[j] = (1 - alpha) * score[j] + alpha * class_rows[:, 1 + place].mean()
        if layerwise or i + 1 in starts or i == depth - 1:
            x[0] = rows[0]
            for place, j in enumerate(slow):
                x[1 + j] = rows[1 + place]
            for j in others if fast_update else []:
                x[1 + j] = x[1 + j] + rows[-1] - entered
            slow = None if not layerwise and i + 1 in starts else slow
    pooled = layer_norm(x[1:].mean(0), model.norm)
    return linear(pooled, model.head), kept_sets


@pytest.mark.parametrize("selection", ["stage", "layer"])
@pytest.mark.parametrize("fast_update", some_slow([True, False], {True}))
def test_equals_the_reference(selection, fast_update):
    model, batch = tiny(), images()
    settings = {"selection": selection, "representative_token": fast_update}
    logits, out = run(model, batch, reduction=settings)
    for b, image in enumerate(batch):
        expected, kept_sets = reference_logits(
            model,
            image,
            starts=(2, 4),
            keep=0.5,
            alpha=0.5,
            layerwise=selection == "layer",
            fast_update=fast_update,
        )
        np.testing.assert_allclose(logits[b], expected, atol=2e-5)
        blocks = [2, 4] if selection == "stage" else [2, 3, 4, 5]
        for block, kept in zip(blocks, kept_sets, strict=True):
            places = np.array(out.token_maps[block][b])
            on_slow_path = np.flatnonzero((places >= 0) & (places <= len(kept)))
            assert on_slow_path.tolist() == [0] + [1 + j for j in kept]


@pytest.mark.parametrize("selection", ["stage", "layer"])
def test_keep_rate_one_is_the_dense_model(selection):
    batch = images()
    evo, _ = run(tiny({"name": "evo", "keep_rate": 1.0, "selection": selection}), batch)
    dense, _ = run(tiny("none"), batch)
    np.testing.assert_array_equal(evo, dense)


def test_placeholders_gain_exactly_what_the_representative_token_gained():
    x, scores = (jnp.asarray(normal(2, *shape)) for shape in ((10, 4), (9,)))
    tokens = start_tokens(x, prefix=1, grid=(3, 3)).replace(scores=scores)
    slow = jax.jit(lambda t: enter_slow_path(t, 4, block=0, fast_update=True))(tokens)
    assert slow.x.shape == (2, 1 + 4 + 1, 4)
    gain = np.arange(4, dtype=np.float32)
    moved = slow.replace(x=slow.x.at[:, -1:].add(gain[None, None]))
    after = jax.jit(leave_slow_path)(moved)
    x, scores, left = (np.asarray(a) for a in (x, scores, after.x))
    for b in range(2):
        kept = set(np.argsort(-scores[b])[:4].tolist())
        for j in range(9):
            expected = x[b, 1 + j] if j in kept else x[b, 1 + j] + gain
            np.testing.assert_allclose(left[b, 1 + j], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(after.source, tokens.source)


@pytest.mark.parametrize("fast_update", [True, False])
@pytest.mark.parametrize("selection", ["stage", "layer"])
def test_every_input_token_is_in_the_source_map_once(selection, fast_update):
    model = tiny({"name": "evo", "representative_token": fast_update, "selection": selection})
    _, out = run(model, images())
    assert len(out.token_maps) == len(model.blocks) + 1
    for block, source in enumerate(out.token_maps):
        selecting = 2 <= block < len(model.blocks)
        n = 17 if not selecting else 1 + 8 + fast_update
        sizes = group_sizes(source, n)
        skipped = (source < 0).sum(axis=1)
        np.testing.assert_array_equal(sizes.sum(axis=1) + skipped, 17)
        assert (sizes[:, :9] == 1).all()  # the class token and the kept ones stand for themselves
    np.testing.assert_array_equal(out.token_maps[-1][0], np.arange(17))


def test_scores_follow_the_running_mean_with_alpha():
    """A larger alpha changes what later stages keep only through the running mean."""
    model, batch = tiny(), images()
    (logits, out), (others, other) = (
        run(model, batch, reduction={"alpha": alpha}) for alpha in (0.1, 0.9)
    )
    # The first selection sees one block's attention.
    np.testing.assert_array_equal(out.token_maps[2], other.token_maps[2])
    assert np.abs(np.asarray(logits) - np.asarray(others)).max() > 0


def test_class_attention_is_asked_for_where_a_selection_depends_on_it():
    def asked(reduction):
        reducer = tiny(reduction).reducer
        tokens = start_tokens(jnp.zeros((1, 17, 12)), prefix=1, grid=(4, 4))
        return [i for i in range(6) if reducer.attention_request(i, tokens).needs]

    assert asked("evo") == [1, 2, 3]  # selects before 2 and 4; 0 is replaced by 1
    assert asked("evo,average_from=1") == [0, 1, 2, 3]
    assert asked("evo,average_from=4") == [1, 3]
    assert asked("evo,average_from=4,selection=layer") == [1, 2, 3, 4]


def test_averaging_may_start_earlier():
    model, batch = tiny(), images()
    late = run(model, batch)[0]
    early = run(model, batch, reduction={"average_from": 0})[0]
    assert float(jnp.abs(late - early).max()) > 0


def test_stages_and_keep_rates_follow_the_settings():
    model = tiny("evo,stages=1:3:5,keep_rate=0.75:0.5:0.25")
    _, out = run(model, images())
    kept = [int((out.token_maps[block][0] < 1 + 12).sum()) for block in (1, 3, 5)]
    counts = [int(out.token_maps[block].max()) for block in (1, 2, 3, 4, 5)]
    assert kept[0] == 13
    assert counts == [13, 13, 9, 9, 5]  # the place of the representative token: after 12, 8, 4


def test_first_block_moves_both_stages():
    fields = tiny("evo,first_block=0").reducer.fields
    assert fields.stage_starts(6) == (0, 3)
    logits, _ = run(tiny("evo,first_block=0"), images())
    assert bool(jnp.isfinite(logits).all())


def test_runs_on_weights_with_a_class_token_head():
    model = evovit_jax.create_model("deit_tiny_patch16_224", "evo,keep_rate=0.5", **TINY)
    logits, out = run(model, images(), train=True)
    assert logits.shape == (3, 5)
    assert out.aux_logits == {}


def test_training_gradients_reach_every_parameter():
    from flax import nnx

    graphdef, params, rest = nnx.split(tiny(), nnx.Param, ...)

    def loss(params):
        logits, out = nnx.merge(graphdef, params, rest)(images(), train=True)
        return jnp.square(logits).sum() + jnp.square(out.aux_logits["cls"]).sum()

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert bool(jnp.isfinite(gradient).all()), path
        assert float(jnp.abs(gradient).max()) > 0, path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("evo,keep_rate=0", "keep_rate must be a number in"),
        ("evo,keep_rate=1.5", "keep_rate must be a number in"),
        ("evo,keep_rate=0.5:0.5:0.5", "3 members for 2 stages"),
        ("evo,keep_rat=0.5", "did you mean 'keep_rate'"),
        ("evo,stages=4:2", "increasing block numbers"),
        ("evo,stages=2:9", "increasing block numbers"),
        ("evo,selection=block", "stage or layer"),
        ("evo,keep_rate", "not FIELD=VALUE"),
        ("evoo", "did you mean 'evo'"),
    ],
)
def test_bad_settings_say_what_is_wrong(spec, message):
    with pytest.raises(UserError, match=message):
        tiny(spec)


def test_an_override_is_checked_as_well():
    with pytest.raises(UserError, match="did you mean 'keep_rate'"):
        tiny()(images(), reduction={"keep_rates": 0.5})
    with pytest.raises(UserError, match="keep_rate must be"):
        tiny()(images(), reduction={"keep_rate": 0})


def test_selection_on_a_mesh_equals_one_device():
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    model, batch = tiny(), images(batch=8)
    run = jax.jit(lambda x: (model(x)[0], model(x)[1].token_maps[2]))
    expected_logits, expected_map = run(batch)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        run_sharded = jax.jit(lambda x: (model(x)[0], model(x)[1].token_maps[2]))
        compiled = run_sharded.lower(sharded).compile()
        logits, token_map = run_sharded(sharded)
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    np.testing.assert_array_equal(token_map, expected_map)


@pytest.mark.parametrize(("multiple", "tokens"), [(1, 8 + 2), (4, 12), (16, 16), (64, 17)])
def test_tokens_are_kept_up_to_a_multiple(multiple, tokens):
    """Of 16 patches 8 are kept, with the class and the representative token; at most all."""
    model = tiny(f"evo,keep_multiple={multiple}")
    counts = token_counts.count(model.reducer, (4, 4))
    assert [block.attention for block in counts] == [17, 17] + 4 * [tokens]
    assert shapes_of(model, 3, 16, 16, 3)[0].shape == (3, 5)


def test_a_multiple_is_a_positive_number():
    with pytest.raises(UserError, match="keep_multiple must be at least 1, got 0"):
        tiny("evo,keep_multiple=0")


def summarised(x, scores, placeholders):
    return jnp.einsum("bp,bpd->bd", representative_weights(scores, placeholders), x)


def test_placeholders_without_any_score_weigh_the_same():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    scores = jnp.array([[0.0, 0.7, 0.0, 0.3], [0.1, 0.2, 0.3, 0.4]])
    placeholders = jnp.array([[True, False, True, False]] * 2)

    def total(scores):
        return summarised(x, scores, placeholders).sum()

    found = summarised(x, scores, placeholders)
    np.testing.assert_allclose(found[0], (x[0, 0] + x[0, 2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(found[1], (0.1 * x[1, 0] + 0.3 * x[1, 2]) / 0.4, rtol=1e-5)
    assert bool(jnp.isfinite(jax.grad(total)(scores)).all())


@pytest.mark.parametrize("gap", [30.0, 46.0, 60.0, 85.0, 110.0])
def test_gradients_are_finite_however_little_the_placeholders_score(gap):
    x = jax.random.normal(jax.random.key(0), (1, 3, 2))
    placeholders = jnp.array([[True, True, False]])

    def total(logits):
        return summarised(x, jax.nn.softmax(logits), placeholders).sum()

    found = jax.grad(total)(jnp.array([[0.0, 0.5, gap]]))
    assert bool(jnp.isfinite(found).all())
    if gap < 100:  # softmax has not rounded them to zero yet: the weights are those of the two
        alone = jax.grad(total)(jnp.array([[0.0, 0.5, 1.0]]))
        np.testing.assert_allclose(found[0, :2], alone[0, :2], rtol=1e-4)
