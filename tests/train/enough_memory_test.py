"""What no memory holds is refused before it is made."""

import jax
import pytest
from tiny import tiny_config

from evovit_jax.errors import UserError
from evovit_jax.hardware import limits
from evovit_jax.train import enough_memory
from evovit_jax.train.program import build


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, None),
        ({"model__embed_dim": 65536, "model__depth": 4}, "the state of .* needs at least"),
        ({"batch_size": 1 << 24, "model__image_size": 64}, "batch_size=16777216 of 64 px needs"),
        ({"eval_batch_size": 1 << 24, "model__image_size": 64}, "batches of 16777216 x 64 px need"),
        (
            {"batch_size": 64, "model__image_size": 4096, "model__patch_size": 32},
            "attention among 16385 tokens in training at batch_size=64 needs at least 128.0 GiB",
        ),
    ],
)
def test_a_run_that_no_memory_holds(fields, message, monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: 64 << 30)
    config = tiny_config("digits_evo.py", **fields | {"reduction": "none"})
    run = build(config, jax.devices()[:1])
    if message is None:
        enough_memory.check(run)
        return
    with pytest.raises(UserError, match=message):
        enough_memory.check(run)
