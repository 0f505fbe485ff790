"""A module's variables as flat dicts by name, and the module without them."""

from typing import Any

from flax import nnx

# By name ("blocks/0/attn/qkv/kernel") arrays, or their shapes, or their shardings.
Variables = dict[str, Any]


class Skeleton:
    """A module without its variables: what makes one of flat dicts again, inside a jitted step."""

    def __init__(self, model: nnx.Module):
        self.graphdef, *states = nnx.split(model, nnx.Param, ...)
        self._paths = tuple(
            {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
            for state in states
        )

    @staticmethod
    def variables(model: nnx.Module) -> tuple[Variables, Variables]:
        """The parameters, and everything else, of `model` by name (shapes, of an abstract one)."""
        _, *states = nnx.split(model, nnx.Param, ...)
        params, stats = (
            {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
            for state in states
        )
        return params, stats

    def build(self, params: Variables, stats: Variables) -> nnx.Module:
        """The module with these variables."""
        states = (
            nnx.from_flat_state({path: variables[name] for name, path in paths.items()})
            for paths, variables in zip(self._paths, (params, stats), strict=True)
        )
        return nnx.merge(self.graphdef, *states)
