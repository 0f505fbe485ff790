"""The names of reducers' parameters in the published checkpoints (DynamicViT, TokenReduction)."""

from flax import nnx

Renames = tuple[tuple[str, str], ...]

_PREDICTOR = r"reducer\.(score_predictor\.\d+)"
_LAYER = r"reducer\.(cluster_layers\.\d+)"

# (pattern, replacement) of the whole name, by the reducer's class; without a row, and for what no
# pattern names, the name here is the name there.
RENAMES: dict[str, Renames] = {
    "DynamicViT": (
        (rf"{_PREDICTOR}\.norm\.(.*)", r"\1.in_conv.0.\2"),
        (rf"{_PREDICTOR}\.embed\.(.*)", r"\1.in_conv.1.\2"),
        (rf"{_PREDICTOR}\.score\.0\.(.*)", r"\1.out_conv.0.\2"),
        (rf"{_PREDICTOR}\.score\.1\.(.*)", r"\1.out_conv.2.\2"),
        (rf"{_PREDICTOR}\.score\.2\.(.*)", r"\1.out_conv.4.\2"),
    ),
    "SiT": (
        (rf"{_LAYER}\.weight", r"\1.scale"),
        (rf"{_LAYER}\.norm\.(.*)", r"\1.weight.0.\2"),
        (rf"{_LAYER}\.fc1\.(.*)", r"\1.weight.1.\2"),
        (rf"{_LAYER}\.fc2\.(.*)", r"\1.weight.3.\2"),
    ),
}


def renames(model: nnx.Module) -> Renames:
    """How the parameters of a model's reducer are called in PyTorch."""
    kind = type(getattr(model, "reducer", None)).__name__
    return (*RENAMES.get(kind, ()), (r"reducer\.(.*)", r"\1"))
