"""The images of a run: what is trained and evaluated on, each opened once and only when needed."""

import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from evovit_jax.data import pipeline
from evovit_jax.data.source import Source


class Data:
    """The data sets of a run's config, and this process's batches of them."""

    def __init__(self, config: ConfigDict):
        self._config = config
        self._process = {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    @functools.cached_property
    def train_source(self) -> Source:
        """What is trained on, opened once: a folder of a million files takes seconds to list."""
        return pipeline.train_source(self._config)

    @functools.cached_property
    def eval_source(self) -> Source:
        """What is evaluated on, its classes numbered as in training."""
        return pipeline.eval_source(self._config, self.train_source)

    def describe(self) -> str:
        """The data in a line; opens what is evaluated on, before anything is trained.

        Raises:
          UserError: it cannot be opened, or has other classes than what is trained on.
        """
        train, test = self.train_source, self.eval_source
        return (
            f"{train.name}, {len(train)} images of {train.num_classes} classes; "
            f"evaluated on {test.name}, {len(test)} images"
        )

    def train_iterator(self) -> Any:
        """This process's endless training batches."""
        return pipeline.make_train_iterator(
            self._config,
            local_batch_size=self._config.batch_size // jax.process_count(),
            seed=self._config.seed,
            source=self.train_source,
            **self._process,
        )

    @functools.cached_property
    def eval_batches(self) -> pipeline.EvalBatches:
        """This process's evaluation batches."""
        return pipeline.make_eval_batches(
            self._config,
            local_batch_size=self._config.eval_batch_size // jax.process_count(),
            source=self.eval_source,
            **self._process,
        )

    def first_to_evaluate(self, count: int) -> dict[str, np.ndarray]:
        """This process's part of the first `count` images to evaluate, as a batch of these.

        Raises:
          UserError: more of them cannot be read than `config.data_limit_unreadable`.
        """
        size = count // jax.process_count()
        given = {"local_batch_size": size, "source": self.eval_source, **self._process}
        with pipeline.make_eval_batches(self._config, **given) as batches:
            return batches[0]

    def close(self) -> None:
        """Ends the workers of the evaluation, where there was one."""
        if "eval_batches" in vars(self):
            self.eval_batches.close()
