"""Evo-ViT on CIFAR-10, 32 px, from a folder of images or from TFDS.

    python -m evovit_jax.main --config=configs/cifar10_evo.py --workdir=runs/cifar10
    python -m evovit_jax.main --config=configs/cifar10_evo.py:cpu --config.data=folder:DIR/train \
        --config.eval_data=folder:DIR/test --workdir=runs/cifar10

Published: none. Expected: 51.6 % top-1 from `:cpu` with images in folders, measured on 2 CPU cores,
2026-11-20; more from the whole recipe, which nobody has run to the end with this code.

Cost: `:cpu` 4 min 20 s on 2 CPU cores, measured in the same run; the whole recipe is not measured.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`, `cpu`."""
    c = config_lib.get_config()
    c.data = "tfds:cifar10:train"
    c.eval_data = "tfds:cifar10:test"
    c.mean = (0.4914, 0.4822, 0.4465)
    c.std = (0.2470, 0.2435, 0.2616)
    c.batch_size = 512
    c.eval_batch_size = 1000
    c.total_epochs = 100
    c.warmup_epochs = 5
    c.eval_epochs = 5
    c.log_steps = 50
    c.model.name = "evo_deit_tiny_patch16_224"
    c.model.update(image_size=32, patch_size=4)
    c.model.drop_path_rate = 0.1
    c.model.dtype = "bfloat16"
    c.optim.update(learning_rate=1e-3, reference_batch=512)
    c.augment.update(crop="pad", pad=4, color_jitter=0.0, erasing_prob=0.0)
    c.eval_transform.crop_fraction = 1.0
    c.ema.update(decay=0.999, warmup=True)
    cpu = {
        "batch_size": 128,
        "total_epochs": 4.5,
        "warmup_epochs": 0.5,
        "eval_epochs": 2.0,
        "model.patch_size": 8,  # 16 tokens: a quarter of the work of 64
        "model.embed_dim": 128,
        "model.depth": 6,
        "model.num_heads": 4,
        "model.drop_path_rate": 0.0,
        "model.dtype": "float32",
        "augment.pad": 2,
        "augment.randaugment": "",
        "augment.mixup": 0.0,
        "augment.cutmix": 0.0,
        "optim.reference_batch": 0,
        "ema.decay": 0.995,
    }
    return config_lib.finish(c, variant, cpu=cpu)
