"""What the parameters of token reductions are called in their official code.

DynamicViT's predictors are `score_predictor.*`; the token-reduction study (Haurum et al., 2023)
has `cluster_layers.*` in every method with parameters.
"""

from evovit_jax.convert.links import Link, default_link, substitute

RENAMES = (
    (r"reducer\.score_predictor\.(\d+)\.norm\.(.*)", r"score_predictor.\1.in_conv.0.\2"),
    (r"reducer\.score_predictor\.(\d+)\.embed\.(.*)", r"score_predictor.\1.in_conv.1.\2"),
    (r"reducer\.score_predictor\.(\d+)\.score\.0\.(.*)", r"score_predictor.\1.out_conv.0.\2"),
    (r"reducer\.score_predictor\.(\d+)\.score\.1\.(.*)", r"score_predictor.\1.out_conv.2.\2"),
    (r"reducer\.score_predictor\.(\d+)\.score\.2\.(.*)", r"score_predictor.\1.out_conv.4.\2"),
    (r"reducer\.(.*)", r"\1"),
)
# SiT's module is a sequence there, with a factor of its own beside it.
SIT = {"norm": "weight.0", "fc1": "weight.1", "fc2": "weight.3"}


def reducer_link(path: str, shape: tuple[int, ...], all_paths: set[str]) -> Link:
    """The link of a reducer's variable `path`, one of `all_paths`."""
    parts = path.split("/")
    layer = "/".join(parts[:3])
    if parts[1] == "cluster_layers" and f"{layer}/fc1/kernel" in all_paths:
        index, part = parts[2], parts[3]
        if part == "scale":
            return Link(path, (f"cluster_layers.{index}.scale",))
        return default_link(path, shape, f"cluster_layers.{index}.{SIT[part]}.{parts[-1]}")
    return default_link(path, shape, substitute(path.replace("/", "."), RENAMES))
