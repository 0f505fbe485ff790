"""Pictures of where the tokens of a few images go, in the network as it is during a training."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from evovit_jax.data.on_device import Batch
from evovit_jax.errors import UserError
from evovit_jax.inference import token_pictures
from evovit_jax.parallel import inference_program, sharding
from evovit_jax.train.program import Program
from evovit_jax.train.state import TrainState

MOST_BLOCKS, SIDE = 12, 112  # of a picture: blocks, and pixels of each


class TokenPictures:
    """Draws the first images that a run evaluates; `config.visualize_images` says how many.

    The network may be split over all processes: each makes one of these, and calls it where all do.
    """

    def __init__(self, run: Program):
        """Reads the images; nothing is computed, and no process waits for another.

        Raises:
          UserError: the network has no tokens, or the images cannot be read.
        """
        self._run, self._count = run, run.config.visualize_images
        if not self._count:
            return
        whole = -(-self._count // run.mesh.size) * run.mesh.size  # the devices share the batch
        self._batch = run.data.first_to_evaluate(whole)
        with jax.set_mesh(run.mesh):
            side = run.config.model.image_size
            pixels = jax.ShapeDtypeStruct((whole, side, side, 3), "uint8")
            look, fold = run.inference
            state = jax.eval_shape(fold, run.like.params, run.like.stats)
            if not jax.eval_shape(look, state, pixels)[1]:
                raise UserError(
                    f"visualize_images={self._count}: {run.config.model.name} has no tokens to "
                    "show; set it to 0"
                )

    @functools.cached_property
    def _program(self) -> Callable[[Any, Batch], dict[str, Array]]:
        """The images, whether they could be read, and their source maps, on every process."""
        look, _ = self._run.inference

        def shown(state: Any, batch: Batch) -> dict[str, Array]:
            _, maps = look(state, batch["image"])
            found = {"image": batch["image"], "mask": batch["mask"]}
            found["maps"] = jnp.stack(maps[:-1], axis=1)
            return {name: value[: self._count] for name, value in found.items()}

        return inference_program.jitted(shown, self._run.mesh)

    def of(self, state: TrainState) -> dict[str, UInt8[np.ndarray, "y x 3"]]:
        """A picture of each image by a name for TensorBoard; none where none are wanted."""
        if not self._count:
            return {}
        run = self._run
        batch = {name: self._batch[name] for name in ("image", "mask")}
        folded = run.inference[1](*state.evaluated())
        found = jax.device_get(self._program(folded, sharding.put_batch(run.mesh, batch)))
        grid = run.skeleton.build(run.like.params, run.like.stats).grid
        pictures = {}
        for i in np.flatnonzero(found["mask"]):
            maps = found["maps"][i]
            prefix = maps.shape[1] - grid[0] * grid[1]
            panels = token_pictures.panels(maps, prefix=prefix, grid=grid)
            pictures[f"tokens/{i:03d}"] = token_pictures.strip(
                found["image"][i], panels, most=MOST_BLOCKS, side=SIDE
            )
        return pictures
