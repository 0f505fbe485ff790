"""What becomes of tokens, beside what the network itself computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import filled

from evovit_jax.inference import token_history
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models import EvalTransform, abstract_model, create_model
from evovit_jax.reduction import list_reductions
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import start_tokens

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3}
METHODS = [name for name in list_reductions() if name != "none"]


def first_maps(model, images):
    """The rows of the class token in the first two blocks, which no token has left."""
    x, rows = model.embed(images), []
    asked = AttentionRequest(needs=frozenset({"weights"}))
    for block in model.blocks[:2]:
        mixed, view = block.attn(block.norm1(x), asked)
        x = x + mixed
        x = x + block.mlp(block.norm2(x))
        rows.append(view.weights[:, :, 0].mean(axis=1))
    return rows


def test_attention_is_the_class_tokens_row_of_the_map():
    @nnx.jit
    def both(model, images):
        watched = token_history.watched_pass(model, images)
        logits, out = model(images)
        return watched, logits, out.token_maps[:-1], first_maps(model, images)

    spec = "evit,keep_rate=0.5,locations=1,fuse=false"
    model = filled("deit_tiny_patch16_224", spec, **TINY, num_classes=7)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    (watched, (maps, noted)), logits, own_maps, rows = both(model, images)
    np.testing.assert_allclose(watched, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(maps, own_maps)
    for found, row in zip(noted, rows, strict=False):
        np.testing.assert_allclose(found, row, atol=1e-6)
    out = np.asarray(maps[2]) < 0
    assert out.sum() == 2 * 8
    assert (np.asarray(noted[2])[out] == 0).all()
    assert (np.asarray(noted[2])[~out] > 0).all()
    np.testing.assert_allclose(noted[2].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_watching_changes_nothing(name):
    """Whatever a reducer asks of attention itself."""
    model = create_model("deit_tiny_patch16_224", name, **TINY, num_classes=7)
    prepared = ReadyModel("tiny", name, model, EvalTransform(image_size=16, resize=16))
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    found = token_history.observer(prepared)(pixels)
    logits, maps = prepared.look(pixels[None])
    np.testing.assert_allclose(found.logits, logits[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.maps, np.concatenate(maps[:-1]))
    assert (found.prefix, found.grid, len(found.attention)) == (1, (4, 4), 3)
    for attention in found.attention:
        assert attention.shape == (16,)
        assert 0 < attention.sum() < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("deit_tiny_distilled_patch16_224", 12),
        ("pit_ti_224", 12),
        ("evo_levit_128s", 9),
        ("levit_128s", 0),
        ("vit_base_patch16_siglip_224", 0),
        ("volo_d1_224", 0),
        ("swin_tiny_patch4_window7_224", 0),
    ],
)
def test_networks_have_attentions_where_they_have_a_class_token(name, blocks):
    graphdef, state = nnx.split(abstract_model(name))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

    def watched(state, images):
        return token_history.watched_pass(nnx.merge(graphdef, state), images)

    _, (maps, noted) = jax.eval_shape(watched, state, images)
    assert len(noted) == blocks
    for token_map, attention in zip(maps, noted, strict=False):
        assert attention.shape == token_map.shape


class StubBlock:
    """Shows what it is asked for, and counts how often."""

    def __init__(self):
        self.asked = []

    def attend(self, block, tokens, request):
        self.asked.append(request)
        has_row = "class_row" in request.needs
        row = jnp.full((1, 2, 5), 0.1 if request.score == "class" else 0.2) if has_row else None
        return tokens, AttentionView(class_row=row)

    def feed_forward(self, block, tokens):
        return tokens


@pytest.fixture
def tokens():
    return start_tokens(jnp.zeros((1, 5, 3)), prefix=1, grid=(2, 2), train=False, key=None)


@pytest.mark.parametrize(
    ("request_", "sees", "calls"),
    [
        (AttentionRequest(), None, 1),
        (AttentionRequest(needs=frozenset({"class_row"})), 0.1, 1),
        (AttentionRequest(needs=frozenset({"class_row"}), score="shift"), 0.2, 2),
    ],
)
def test_a_reducer_sees_what_it_asked_for(tokens, request_, sees, calls):
    noted, block = [], StubBlock()
    _, view = token_history.Watched(block, noted).attend(0, tokens, request_)
    assert (view.class_row is None) == (sees is None)
    if sees is not None:
        np.testing.assert_allclose(view.class_row, sees)
    assert len(block.asked) == calls
    np.testing.assert_allclose(noted, np.full((1, 1, 5), 0.1))


def test_a_block_that_looks_ahead_is_noted_once(tokens):
    noted, block = [], StubBlock()
    watched = token_history.Watched(block, noted)
    watched.attend(0, tokens, AttentionRequest(look_ahead=lambda tokens, view: (tokens, None)))
    assert noted == []
    given = jnp.full((1, 2, 5, 5), 0.3)
    watched.attend(0, tokens, AttentionRequest(weights=given))
    np.testing.assert_allclose(noted, np.full((1, 1, 5), 0.3))


def test_a_token_of_several_shares_its_attention_out():
    row = jnp.array([[[0.1, 0.6, 0.3], [0.3, 0.2, 0.5]]])
    source = jnp.array([[0, 1, 1, 2, -1]], jnp.int32)
    found = token_history.attention_to_inputs(row, source)
    np.testing.assert_allclose(found, [[0.2, 0.2, 0.2, 0.4, 0.0]], rtol=1e-6)
