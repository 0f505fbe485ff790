"""Networks that no reduction can run in: the call that they share with all models.

Tested in tests/models/regnet_test.py, pvt_v2_test.py, crossvit_test.py and lookupvit_test.py.
"""

from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.errors import UserError
from evovit_jax.models.outputs import Outputs


class Unreduced(nnx.Module):
    """A network whose only reduction is "none"; subclasses have `refusal` and `forward`."""

    def refusal(self, fields: list[str]) -> str:
        """The line that says why `fields` of a reduction cannot be set."""
        raise NotImplementedError

    def forward(
        self, images: Float[Array, "b h w c"], *, train: bool, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits and everything else of one pass; the arguments are those of a call."""
        raise NotImplementedError

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        reduction: dict | None = None,
    ) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits and everything else of one pass.

        Args:
          images: normalised, channels last.
          train: a training pass: stochastic depth, batch statistics, where the network has them.
          key: where everything random of the pass comes from; None switches it off.
          reduction: nothing here can be set.

        Raises:
          UserError: `reduction` sets anything, or the images do not fit the network.
        """
        if reduction:
            raise UserError(self.refusal(sorted(reduction)))
        return self.forward(images, train=train, key=key)
