"""A module's variables as flat dicts by name, and the module without them.

Tested in tests/train/state_test.py.
"""

from typing import Any

from flax import nnx

# By name ("blocks/0/attn/qkv/kernel") arrays, or their shapes, or their shardings.
Variables = dict[str, Any]


def _paths(state: Any) -> dict[str, tuple]:
    """The path of each variable of a state by its name."""
    return {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The variables of `model` by name; they are its own, so that setting one sets the model's."""
    state = nnx.state(model)
    flat = dict(nnx.to_flat_state(state))
    return {name: flat[path] for name, path in _paths(state).items()}


class Skeleton:
    """A module without its variables: what makes one of flat dicts again, inside a jitted step."""

    def __init__(self, model: nnx.Module):
        self.graphdef, *states = nnx.split(model, nnx.Param, ...)
        self._paths = tuple(map(_paths, states))

    @staticmethod
    def variables(model: nnx.Module) -> tuple[Variables, Variables]:
        """The parameters, and everything else, of `model` by name (shapes, of an abstract one)."""
        params, stats = {}, {}
        for name, variable in variables(model).items():
            kind = params if isinstance(variable, nnx.Param) else stats
            kind[name] = variable.get_value()
        return params, stats

    def build(self, params: Variables, stats: Variables) -> nnx.Module:
        """The module with these variables."""
        states = (
            nnx.from_flat_state({path: variables[name] for name, path in paths.items()})
            for paths, variables in zip(self._paths, (params, stats), strict=True)
        )
        return nnx.merge(self.graphdef, *states)
