"""What every method must do, whichever it is: run anywhere, account for every token, export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny import run_model, some_slow

import evovit_jax
from evovit_jax import reduction
from evovit_jax.errors import UserError
from evovit_jax.reduction import token_counts
from evovit_jax.reduction.tokens import group_sizes

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 12,
    "depth": 4,
    "num_heads": 3,
    "num_classes": 5,
}
LEVIT = {
    "image_size": 64,
    "embed_dim": (16, 24, 32),
    "num_heads": (2, 2, 2),
    "key_dim": 8,
    "depth": (2, 2, 2),
    "num_classes": 5,
}
METHODS = reduction.list_reductions()
# Settings beside each method's own defaults that take another road through it.
VARIANTS = [
    "atc,linkage=single,proportional_attention=false",
    "atc,linkage=complete,keep_rate=0.3",
    "ats,keep_rate=0.4",
    "avit,centre=0.0,epsilon=0.4",
    "dpcknn,equal_weight=true",
    "evit,fuse=false",
    "evit,rounding=grid,keep_rate=0.9:0.5:0.2",
    "evo,selection=layer",
    "evo,representative_token=false",
    "heuristic,masked=true",
    "heuristic,contiguous=true,pattern=l1",
    "kmedoids,equal_weight=true,locations=0:2",
    "gtp,graph=mean,proportional_attention=false",
    "gtp,graph=spatial,score=class,attention_kept=0.6",
    "ia_red2,masked=true",
    "ltmp,merge_threshold=0.3,prune_threshold=0.05885",
    "ltmp,order=prune_merge,merge_threshold=0.3,prune_threshold=0.0588",
    "ltmp,order=prune,prune_threshold=0.0588",
    "mctf,r=3,ahead=after,bidirectional=false,pooling=size",
    "mctf,r=0.3,ahead=precise",
    "patch_slimming,kept=16:9:4:4",
    "pitome,keep_rate=0.6,proportional_attention=true",
    "ppt,threshold=0.0",
    "tofu,keep_rate=0.6",
    "tokenlearner,version=1.0,sum_pooling=false",
    "tome,r=3,inflection=-1.0",
    "tome,keep_rate=0.5",
]
# One of each kind in the quick run: each compiles a program of its own.
QUICK = {"none", "evo", "tome", "ats", "prune_and_merge"}
IN_LEVIT = [
    method
    for method in METHODS
    if reduction.reducer_class(method, in_pyramid=True).not_in_pyramids is None
]


def vit(spec, **overrides):
    name = "deit_tiny_distilled_patch16_224" if overrides.pop("distilled", 0) else None
    name = name or "deit_tiny_patch16_224"
    return evovit_jax.create_model(name, spec, **{**TINY, **overrides}, seed=3)


def images(*shape):
    return jax.random.normal(jax.random.key(7), (*shape, 3))


@functools.lru_cache(maxsize=1)
def passed(spec, distilled=False):
    """A model and its jitted pass over three images."""
    model = vit(spec, distilled=distilled)
    return model, *jax.jit(model)(images(3, 16, 16))


def check_source_map(model, out, grid):
    """Every input token is in one place or dropped, and class tokens stay by themselves."""
    prefix, counts = model.prefix, token_counts.count(model.reducer, grid)
    inputs = prefix + grid[0] * grid[1]
    gone = np.zeros(out.token_maps[0].shape, bool)
    for block, source in enumerate(out.token_maps):
        assert source.dtype == jnp.int32
        assert source.shape[1] == inputs
        last = block == len(counts)
        n = counts[-1].leaving if last else counts[block].feed_forward
        sizes = np.asarray(group_sizes(source, n))
        dropped = np.asarray(source) < 0
        np.testing.assert_array_equal(sizes.sum(axis=1) + dropped.sum(axis=1), inputs)
        assert source.max() < n
        assert source.min() >= -(block + 1)
        np.testing.assert_array_equal(
            source[:, :prefix], np.broadcast_to(np.arange(prefix), source[:, :prefix].shape)
        )
        np.testing.assert_array_equal(sizes[:, :prefix], 1)
        gone = dropped
    assert out.features.shape[1] == counts[-1].leaving
    return gone


@pytest.mark.parametrize("spec", some_slow([*METHODS, *VARIANTS], QUICK))
def test_the_source_map_accounts_for_every_token(spec):
    model, logits, out = passed(spec)
    assert bool(jnp.isfinite(logits).all())
    check_source_map(model, out, (4, 4))
    fewest = min(count.attention for count in token_counts.count(model.reducer, (4, 4)))
    valid = (np.asarray(out.token_maps[-2]) >= 0).sum(axis=1)
    if spec in ("none", "avit", "ltmp"):
        assert fewest == 17
    elif "masked" in spec or spec.startswith(("avit", "ltmp")):
        assert fewest == 17
        assert (valid < 17).all()
    else:
        assert fewest < 17


@pytest.mark.parametrize("spec", some_slow([*METHODS, *VARIANTS], {"evo", "tome"}))
def test_logits_and_maps_need_no_other_token_of_the_last_block(spec):
    model, logits, out = passed(spec)
    found, rest = run_model(model, images(3, 16, 16), logits_only=True)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)
    for source, expected in zip(rest.token_maps, out.token_maps, strict=True):
        np.testing.assert_array_equal(source, expected)


@pytest.mark.parametrize("spec", some_slow(METHODS, {"evo", "tome"}))
def test_runs_on_another_grid_and_depth_with_two_class_tokens(spec):
    """Three rows of five patches on weights for 4x4, five blocks, a distillation token."""
    model = vit(spec, distilled=True, depth=5)
    if not model.reducer.any_grid:
        with pytest.raises(UserError, match="make the model with the images' size"):
            run_model(model, images(2, 12, 20))
        return
    logits, out = jax.jit(model)(images(2, 12, 20))
    assert logits.shape == (2, 5)
    assert bool(jnp.isfinite(logits).all())
    check_source_map(model, out, (3, 5))


@pytest.mark.parametrize("spec", some_slow([*METHODS, "heuristic,masked=true"], {"evo", "tome"}))
def test_exports_with_a_symbolic_batch(spec):
    model, expected, _ = passed(spec)
    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, 16, 16, 3), jnp.float32)
    exported = export.export(jax.jit(lambda x: model(x)[0]))(shape)
    np.testing.assert_allclose(exported.call(images(3, 16, 16)), expected, atol=1e-5)


@pytest.mark.parametrize("spec", some_slow([*IN_LEVIT, "evit,fuse=false"], {"evo"}))
def test_runs_inside_the_stages_of_a_pyramid(spec):
    model = evovit_jax.create_model("evo_levit_128s", spec, **LEVIT)
    logits, out = jax.jit(model)(images(2, 64, 64))
    assert bool(jnp.isfinite(logits).all())
    assert [m.shape for m in out.token_maps] == [(2, 17)] * 7
    sizes = [group_sizes(m, 17) for m in out.token_maps]
    for source, size in zip(out.token_maps, sizes, strict=True):
        np.testing.assert_array_equal(size.sum(axis=1) + (source < 0).sum(axis=1), 17)
    counts = token_counts.count(model.reducer, (4, 4))
    assert [count.entering for count in counts[::2]] == [17, 5, 2]
    assert spec == "none" or counts[1].feed_forward < 17 or counts[2].feed_forward < 5


def test_the_published_methods_that_can_run_in_a_pyramid_do():
    assert {"none", "evo", "evit", "topk", "tome"} <= set(IN_LEVIT)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in IN_LEVIT])
def test_is_refused_in_a_pyramid_where_it_makes_no_sense(method):
    with pytest.raises(UserError, match="does not run inside a pyramid"):
        evovit_jax.create_model("evo_levit_128s", method, **LEVIT)


@pytest.mark.parametrize("method", ["evo", "evit", "topk", "etps"])
def test_needs_the_class_token_that_levit_lacks(method):
    with pytest.raises(UserError, match="has no class token"):
        evovit_jax.create_model("levit_128s", method, **LEVIT)


@pytest.mark.parametrize("method", ["tome", "tofu", "pitome", "atc"])
def test_merging_is_refused_where_attention_biases_belong_to_places(method):
    with pytest.raises(UserError, match="attention biases belong to places"):
        evovit_jax.create_model("levit_128s", method, **LEVIT)


def in_bfloat16(method, compute):
    """A training pass in half precision: its logits, and everything else by name."""
    model = vit(method, dtype="bfloat16", num_classes=3)

    def passed(x):
        logits, out = model(x, train=True, key=jax.random.key(0))
        return logits, vars(out)

    return compute(passed)(images(2, 16, 16))


@pytest.mark.parametrize(
    "method",
    some_slow(
        [m for m in METHODS if m != "none"],
        {"evo", "evit", "tome", "ats", "dynamicvit", "sit", "pitome", "cropr"},
    ),
)
def test_scores_are_float32_when_it_computes_in_bfloat16(method):
    """Half precision changes no dtype that matters, and no shape; nothing needs compiling."""
    logits, out = in_bfloat16(method, lambda passed: functools.partial(jax.eval_shape, passed))
    assert logits.dtype == jnp.float32
    assert out["features"].dtype == jnp.bfloat16
    assert all(loss.dtype == jnp.float32 for loss in out["losses"].values())


@pytest.mark.parametrize("method", some_slow([m for m in METHODS if m != "none"], {"evo", "dtps"}))
def test_its_numbers_stay_finite_in_bfloat16(method):
    logits, out = in_bfloat16(method, jax.jit)
    assert bool(jnp.isfinite(logits).all())
    assert all(bool(jnp.isfinite(loss)) for loss in out["losses"].values())


@pytest.mark.parametrize(
    "method",
    some_slow(
        ["atc", "ats", "diffrate", "dpcknn", "evit", "gtp", "kmedoids", "mctf", "pitome", "tome"],
        {"pitome"},
    ),
)
def test_selection_on_a_mesh_gathers_no_activations(method):
    model, batch = vit(method), images(8, 16, 16)
    expected = jax.jit(lambda x: model(x)[0])(batch)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        compiled = jax.jit(lambda x: model(x)[0]).lower(sharded).compile()
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(compiled(sharded), expected, atol=1e-5)


def test_parameters_fix_what_they_are_made_for():
    model = vit("patchmerger,keep_rate=0.5")
    same, _ = run_model(model, images(1, 16, 16), reduction={"keep_rate": 0.5})
    assert same.shape == (1, 5)
    with pytest.raises(UserError, match="parameters for each of its keep_rate"):
        run_model(model, images(1, 16, 16), reduction={"keep_rate": 0.7})
    with pytest.raises(UserError, match="parameters for each of its locations"):
        run_model(vit("dynamicvit"), images(1, 16, 16), reduction={"locations": (1,)})


@pytest.mark.parametrize(
    "method",
    some_slow(
        [
            "evit",
            "topk",
            "atc",
            "ats",
            "dpcknn",
            "kmedoids",
            "heuristic",
            "etps",
            "dtps",
            "pitome",
            "shift",
        ],
        {"evit", "kmedoids", "etps"},
    ),
)
def test_keep_rate_one_is_the_dense_model(method):
    """The first phase of a keep-rate warm-up."""
    dense = jax.jit(vit("none"))(images(2, 16, 16))[0]
    kept = jax.jit(functools.partial(vit(method), reduction={"keep_rate": 1.0}))
    np.testing.assert_allclose(kept(images(2, 16, 16))[0], dense, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("topk,keep_rate=1.2", r"keep_rate must be a number in \(0, 1\]"),
        ("topk,keep_rate=0.5:0.5", "2 members for 3 locations"),
        ("topk,locations=3:1", "increasing block numbers in 0..3"),
        ("evit,rounding=floor", "block or grid"),
        ("heuristic,pattern=l3", "unknown heuristic pattern 'l3'"),
        ("heuristic,contiguous=true,min_radius=0", "min_radius must be above 0"),
        ("kmedoids,iterations=-1", "iterations must not be negative"),
        ("dpcknn,k_neighbors=0", "k_neighbors must be 1 or more"),
        ("sinkhorn,iterations=0", "iterations 1 or more"),
        ("diffrate,rates=diffrate_s_2.8g", "no published rates"),
        ("diffrate,rates=diffrate_s_2.9g", "is for 12 blocks, and this network has 4"),
        ("diffrate,merge_kept=1:1:1:1", "goes with prune_kept"),
        ("diffrate,rates=diffrate_s_2.9g,prune_kept=9:8:7:6", "not both"),
        ("diffrate,prune_kept=9:8:7:6,merge_kept=9:8:7:1", "merge_kept must be at most"),
        ("dtps,temperature=0", "temperature must be above 0"),
        ("gtp,score=keys", "gtp score must be one of mixed, image, diagonal, class"),
        ("gtp,dropped=1:2", "2 members for 4 blocks"),
        ("gtp,neighbours=0", "neighbours must be 1 or more"),
        ("mctf,r=1.5", "whole number or a share below 1"),
        ("mctf,ahead=yes", "mctf ahead must be one of map, precise, after"),
        ("mctf,locations=9:", "increasing block numbers in 0..3"),
        ("atc,linkage=ward", "atc linkage must be one of average, complete, single"),
        ("patch_slimming,kept=4:", "1 members for 4 blocks"),
        ("ppt,r=1:2", "2 members for 3 locations"),
        ("prune_and_merge,kept=4:", "1 members for 3 locations"),
        ("prune_and_merge,keep_rate=0.9,prune_rate=0.2", "with keep_rate, at most 1"),
        ("prune_and_merge,locations=1:2,kept=4:99", r"kept must be in 2\.\.17"),
        ("tome,r=-1", "whole numbers of tokens"),
        ("tome,r=1:2", "2 members for 4 blocks"),
        ("tome,r=2,keep_rate=0.5", "r or keep_rate, not both"),
        ("tome,locations=1", "locations go with keep_rate"),
        ("tome,r=2,inflection=2", r"inflection must be in \[-1, 1\]"),
        ("tome,r=1:1:1:1,inflection=-1.0", "goes with one number r"),
    ],
)
def test_bad_settings_say_what_is_wrong(spec, message):
    with pytest.raises(UserError, match=message):
        vit(spec)
