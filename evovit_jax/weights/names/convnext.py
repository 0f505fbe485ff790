"""ConvNeXt under timm's names and the official ones, which DynamicViT's code on it shares.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses
import functools

from flax import nnx

from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Layout, Renames, Scheme, renamed_scheme
from evovit_jax.weights.names import reducers

TIMM_RENAMES = (
    (r"patch_embed\.conv\.(.*)", r"stem.0.\1"),
    (r"patch_embed\.norm\.(.*)", r"stem.1.\1"),
    (r"stages\.(\d+)\.(\d+)\.(.*)", r"stages.\1.blocks.\2.\3"),
    (r"downsamples\.(\d+)\.(.*)", lambda m: f"stages.{int(m[1]) + 1}.downsample.{m[2]}"),
    (r"(stages\.\d+\.downsample)\.norm\.(.*)", r"\1.0.\2"),
    (r"(stages\.\d+\.downsample)\.conv\.(.*)", r"\1.1.\2"),
    (r"norm\.(.*)", r"head.norm.\1"),
    (r"head\.(weight|bias)", r"head.fc.\1"),
)
OFFICIAL_RENAMES = (
    (r"patch_embed\.conv\.(.*)", r"downsample_layers.0.0.\1"),
    (r"patch_embed\.norm\.(.*)", r"downsample_layers.0.1.\1"),
    (r"downsamples\.(\d+)\.(.*)", lambda m: f"downsample_layers.{int(m[1]) + 1}.{m[2]}"),
    (r"(downsample_layers\.\d+)\.norm\.(.*)", r"\1.0.\2"),
    (r"(downsample_layers\.\d+)\.conv\.(.*)", r"\1.1.\2"),
    (r"(stages\..*)\.conv_dw\.(.*)", r"\1.dwconv.\2"),
    (r"(stages\..*)\.mlp\.fc(\d)\.(.*)", r"\1.pwconv\2.\3"),
)
# (in, out) here, a 1x1 convolution there.
POINTWISE = Layout(
    lambda s: (s[1], s[0], 1, 1), lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None]
)
SPARSIFIED = r"score_predictor\..*|stages\..*\.fast_path(_gamma|\..*)"


def scheme(model: nnx.Module, renames: Renames) -> Scheme:
    """The names of a kind of checkpoint."""
    own = (*reducers.fast_paths(model, "fast_path.0", "fast_path.1"), *reducers.renames(model))
    links = []
    for link in renamed_scheme(model, (*own, *renames)).links:
        if link.path.startswith("reducer/score_predictor") and link.path.endswith("kernel"):
            link = dataclasses.replace(link, layout=POINTWISE)
        links.append(link)
    return Scheme(tuple(links), spare=SPARSIFIED)


FAMILIES = (
    Family(
        "convnext",
        functools.partial(scheme, renames=OFFICIAL_RENAMES),
        r"downsample_layers\.0\.0\.weight",
        natural=reducers.has_fast_paths,
    ),
    Family("timm", functools.partial(scheme, renames=TIMM_RENAMES)),
)
