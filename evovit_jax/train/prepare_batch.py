"""From a batch of pixels and labels to what the network and the loss take, on the device."""

import jax
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from evovit_jax.data import on_device
from evovit_jax.data.on_device import Batch
from evovit_jax.train import losses


def prepare(
    config: ConfigDict, key: Key[Array, ""], batch: Batch, classes: int
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Normalised, erased and mixed images, float32, and their soft targets, in timm's order."""
    a = config.augment
    erase_key, mix_key = jax.random.split(key)
    images = on_device.normalize(batch["image"], config.mean, config.std)
    targets = losses.targets_of(batch["label"], classes, config.loss.label_smoothing)
    if a.erasing_prob:
        images = on_device.random_erasing(erase_key, images, prob=a.erasing_prob)
    if a.mixup or a.cutmix:
        images, targets = on_device.mix(
            mix_key,
            images,
            targets,
            mixup_alpha=a.mixup,
            cutmix_alpha=a.cutmix,
            switch_prob=a.mix_switch_prob,
            prob=a.mix_prob,
            group=a.mix_group,
        )
    return images, targets
