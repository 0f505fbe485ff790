"""The data of a run: nothing is opened twice, or before it is needed."""

import re

import pytest
from tiny import tiny_config

from evovit_jax.data import pipeline
from evovit_jax.errors import UserError
from evovit_jax.train.data import Data


@pytest.fixture
def opened(monkeypatch):
    """The data sets that were opened, in order."""
    specs = []
    real = pipeline.open_source
    monkeypatch.setattr(
        pipeline,
        "open_source",
        lambda spec, *rest, **settings: specs.append(spec) or real(spec, *rest, **settings),
    )
    return specs


def test_the_data_are_opened_once(opened):
    config = tiny_config(model__num_classes=10)
    data = Data(config)
    assert opened == []
    batch = next(data.train_iterator())
    assert batch["image"].shape == (config.batch_size, 8, 8, 3)
    assert opened == [config.data]  # training alone does not open what is evaluated on
    assert re.search(r", \d+ images of 10 classes; evaluated on tfds:", data.describe())
    assert len(data.eval_batches) == 2  # 24 images in batches of 16
    assert opened == [config.data, config.eval_data]


def test_what_cannot_be_evaluated_on_is_said_by_the_description():
    with pytest.raises(UserError, match="'/nowhere' does not exist"):
        Data(tiny_config(eval_data="folder:/nowhere")).describe()
