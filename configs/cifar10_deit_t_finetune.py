"""DeiT-tiny's published weights on CIFAR-10 at 224 px, for a few thousand images and a CPU.

    python -m evovit_jax.main --config=configs/cifar10_deit_t_finetune.py --workdir=DIR/dense \
        --config.data=folder:DIR/train --config.eval_data=folder:DIR/test \
        --config.init_weights=DIR/deit_tiny_patch16_224.safetensors

first the dense network; then a reduction from where that ended, with
`--config.init_weights=DIR/dense --config.reduction=SPEC`. experiments/finetune_cifar10.sh does all
that docs/results.md has.

AdamW at 1e-4 for batch 64 along a cosine, a reduction's own parameters at ten times the rate;
three epochs, random crops of at least a third of the image and flips, no average of the weights.

Published: none. Expected: docs/results.md has what was measured with 5,000 images.

Cost: about 12 minutes on 2 CPU cores for 5,000 images and three epochs, dense.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = config_lib.get_config()
    c.data, c.eval_data = "tfds:cifar10:train", "tfds:cifar10:test"
    c.model.name = "deit_tiny_patch16_224"
    c.init_weights = "hf://timm/deit_tiny_patch16_224.fb_in1k"
    c.init_allow_missing = "reducer/.*"
    c.batch_size, c.eval_batch_size = 64, 100
    c.total_epochs, c.warmup_epochs = 3, 0.25
    c.checkpoint_epochs, c.eval_epochs, c.log_steps = 0.5, 1, 10
    c.optim.update(learning_rate=1e-4, reference_batch=0, min_learning_rate=1e-6)
    c.optim.learning_rate_rules = (("reducer/.*", 10.0), (".*", 1.0))
    c.augment.update(scale=(1 / 3, 1.0), randaugment="", color_jitter=0.0)
    c.augment.update(mixup=0.0, cutmix=0.0, erasing_prob=0.0)
    c.eval_transform.crop_fraction = 1.0
    c.ema.decay = 0.0
    return config_lib.finish(c, variant)
