"""CrossViT under timm's names, and under those of the official code.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses
import functools
import re

from flax import nnx

from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Renames, Scheme, as_convolution, renamed_scheme
from evovit_jax.weights.names import flat

# The official code has lists where timm has numbered parameters.
TIMM_RENAMES = ((r"(pos_embed|cls_token)\.(\d+)", r"\1_\2"),)
KEYS_AND_VALUES = r"(.*\.attn)\.kv\.(weight|bias)"


def _between(match: re.Match) -> str:
    """A convolution's number, where each is followed by a ReLU."""
    return f"{match[1]}.{2 * int(match[2])}.{match[3]}"


RENAMES = (
    (r"embeddings\.(\d+)\.(pos_embed|cls_token)", r"\2.\1"),
    (r"embeddings\.(\d+)\.patch_embed\.(.*)", r"patch_embed.\1.\2"),
    (r"(patch_embed\.\d+\.proj)\.(\d+)\.(weight|bias)", _between),
    (r"(.*\.(?:projs|revert_projs)\.\d+)\.norm\.(.*)", r"\1.0.\2"),
    (r"(.*\.(?:projs|revert_projs)\.\d+)\.linear\.(.*)", r"\1.2.\2"),
    (r"(.*\.fusion\..*\.attn)\.q\.(.*)", r"\1.wq.\2"),
)


def scheme(model: nnx.Module, renames: Renames = ()) -> Scheme:
    """The official names, up to `renames`."""
    config = model.config
    # Of stages with one fusion, those whose `depth` says 0 have no number in the name.
    single = [rf"blocks\.{i}\.fusion" for i, stage in enumerate(config.depth) if stage[-1] == 0]
    own = tuple((rf"({name}\.\d+)\.0\.(.*)", r"\1.\2") for name in single)
    links = []
    for link in renamed_scheme(model, (*own, *RENAMES, *renames)).links:
        if found := re.fullmatch(KEYS_AND_VALUES, link.names[0]):
            attn, leaf = found.groups()
            link = dataclasses.replace(link, names=(f"{attn}.wk.{leaf}", f"{attn}.wv.{leaf}"))
        if found := re.fullmatch(r"embeddings/(\d+)/patch_embed/proj/kernel", link.path):
            patch = config.patch_size[int(found[1])]
            link = dataclasses.replace(link, layout=as_convolution(patch, config.in_channels))
        links.append(link)
    branches = range(len(model.embeddings))
    resize = {f"embeddings/{i}/pos_embed": flat.grid_resizer(1) for i in branches}
    return Scheme(tuple(links), resize=resize)


FAMILIES = (
    Family("crossvit", scheme, r"pos_embed\.0"),
    Family("timm", functools.partial(scheme, renames=TIMM_RENAMES)),
)
