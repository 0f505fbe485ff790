"""How much of a token each patch has, and how far two such maps agree.

One definition holds for methods that drop, fuse and merge: the weight of a patch at a block is one
over the number of patches in the token that holds it there. It is 1 for a patch with a token of its
own, 1/n for one of n that share a token, 0 for one that was dropped. The weights of an image add up
to the number of its patch tokens.

Maps are given as the number of patches in the token of each patch (`group_sizes`).
"""

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.stats import rankdata

Sizes = Int[np.ndarray, "*m p"]
Values = Float[np.ndarray, "*m"]


def group_sizes(token_maps: Int[np.ndarray, "*m n"], prefix: int) -> Sizes:
    """How many patches are in the token that holds each patch; 0 where it was dropped.

    Args:
      token_maps: as `Outputs.token_maps`, class tokens first.
      prefix: number of class tokens and registers.
    """
    patches = token_maps[..., prefix:]
    maps = patches.reshape(-1, patches.shape[-1]).astype(np.int64)
    there, tokens = maps >= 0, maps.max(initial=0) + 1
    token = np.where(there, maps + tokens * np.arange(len(maps))[:, None], 0)
    held = np.bincount(token[there], minlength=1)
    return np.where(there, held[token], 0).reshape(patches.shape)


def weights(sizes: Sizes) -> Float[np.ndarray, "*m p"]:
    """The weight of each patch, in [0, 1]."""
    return np.where(sizes > 0, 1 / np.maximum(sizes, 1), 0.0)


def iou(a: Sizes, b: Sizes) -> Values:
    """Intersection over union of two maps: the sum of the smaller weights over that of the larger.

    Of sets of kept patches this is the Jaccard index; of weights Ruzicka's similarity. Not a number
    where both maps are empty.
    """
    a, b = weights(a), weights(b)
    with np.errstate(invalid="ignore"):
        return np.minimum(a, b).sum(axis=-1) / np.maximum(a, b).sum(axis=-1)


def chance_iou(a: Sizes, b: Sizes) -> Values:
    """The mean `iou` if the patches of one map are shuffled, to second order.

    The sum of the smaller weights m has a known mean and variance under shuffling (Hoeffding, "A
    combinatorial central limit theorem", 1951); of m / (total - m) the Taylor series around that
    mean is taken. For sets of 4 of 16 patches that is exact to 0.001, and nearer for more patches.
    """
    patches, largest = a.shape[-1], max(1, int(a.max(initial=0)), int(b.max(initial=0)))
    counts_a, counts_b = _counts(a, largest), _counts(b, largest)
    upto_a, upto_b = counts_a.cumsum(axis=-1), counts_b.cumsum(axis=-1)
    # min(1/s, 1/t) is the sum of the steps from 1/n to 1/(n + 1) over all n of at least s and t.
    n = np.arange(1, largest + 1)
    steps, squares = (1 / n**k - np.where(n < largest, 1 / (n + 1) ** k, 0) for k in (1, 2))
    mean = (upto_a * upto_b * steps).sum(axis=-1) / patches
    variance = (upto_a * upto_b * squares).sum(axis=-1) + mean**2
    for counts, upto in ((counts_a, upto_b), (counts_b, upto_a)):
        row = (upto * steps)[..., ::-1].cumsum(axis=-1)[..., ::-1] / patches
        variance = variance - patches * (counts * row**2).sum(axis=-1)
    variance = variance / max(1, patches - 1)
    total = ((counts_a + counts_b) / n).sum(axis=-1)
    rest = np.where(total > 0, total - mean, np.nan)
    return mean / rest + total * variance / rest**3


def _counts(sizes: Sizes, largest: int) -> Float[np.ndarray, "*m {largest}"]:
    """How many patches of each map are in tokens of 1, 2, ... `largest` patches."""
    rows = sizes.reshape(-1, sizes.shape[-1])
    place = rows + (largest + 1) * np.arange(len(rows))[:, None]
    counts = np.bincount(place.ravel(), minlength=len(rows) * (largest + 1))
    counts = counts.reshape(*sizes.shape[:-1], largest + 1)[..., 1:]
    return counts.astype(np.float64)


def lifetimes(sizes: Int[np.ndarray, "*m blocks p"]) -> Float[np.ndarray, "*m p"]:
    """How long each patch lives: the mean of its weights over the blocks."""
    return weights(sizes).mean(axis=-2)


def rank_correlation(a: Shaped[np.ndarray, "*m p"], b: Shaped[np.ndarray, "*m p"]) -> Values:
    """Spearman's: Pearson's of the ranks, equal values sharing their mean rank.

    Not a number where all values of one are equal.
    """
    a, b = (rankdata(x, axis=-1) for x in (a, b))
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))


def share_kept(
    sizes: Int[np.ndarray, "*#m p"], values: Float[np.ndarray, "*#m p"]
) -> Float[np.ndarray, "..."]:
    """The share of what the patches have (class attention, for example) that is on kept patches."""
    with np.errstate(invalid="ignore"):
        return (weights(sizes) * values).sum(axis=-1) / values.sum(axis=-1)


def share_of_tokens(
    sizes: Int[np.ndarray, "*#m p"], covered: Float[np.ndarray, "*#m p"]
) -> Float[np.ndarray, "..."]:
    """The share of the tokens that is on an object, which covers a share of each patch."""
    kept = weights(sizes)
    with np.errstate(invalid="ignore"):
        return (kept * covered).sum(axis=-1) / kept.sum(axis=-1)
