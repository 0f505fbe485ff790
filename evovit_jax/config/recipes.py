"""What the published ImageNet recipes share, so that a file in `configs/` says what is its own.

Each function returns a whole config; nothing of it is hidden: `tests/golden/configs` has every
recipe written out. Batch sizes are those of the published runs over all of their GPUs, learning
rates are scaled by the batch where the authors do so (`optim.reference_batch`).
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib

# The shares of tokens that a location keeps in the token-reduction study.
STUDY_RATES = (0.9, 0.7, 0.5, 0.25)


def imagenet() -> ConfigDict:
    """The defaults (DeiT's optimiser, schedule, augmentation and loss) on ImageNet-1k."""
    c = config_lib.get_config()
    c.data = "tfds:imagenet2012:train"
    c.eval_data = "tfds:imagenet2012:validation"
    c.augment.repeats = 3
    return c


def deit(
    model: str,
    reduction: str = "",
    *,
    drop_path_rate: float = 0.1,
    image_size: int = 224,
    batch_size: int = 1024,
    gpu_batch: int = 128,
) -> ConfigDict:
    """DeiT's recipe from scratch (Touvron et al., 2021, Table 9), also Evo-ViT's and EViT's.

    300 epochs of batch 1024, AdamW at 5e-4 * batch / 512 with 5 epochs of warm-up and a cosine to
    1e-5, weight decay 0.05, RandAugment, mixup 0.8, cutmix 1.0, erasing 0.25, smoothing 0.1, three
    views of each image; bfloat16, where the authors' code has float16.

    Args:
      model: its name.
      reduction: as `--reduction` takes it; "" for the model's own.
      drop_path_rate: stochastic depth of the last block; the published one is 0 for DeiT-T.
      image_size: pixels.
      batch_size: of a step.
      gpu_batch: what one GPU had of it; a draw of mixup and cutmix is for so many images.
    """
    c = imagenet()
    c.batch_size = batch_size
    c.model.name, c.reduction = model, reduction
    c.model.update(drop_path_rate=drop_path_rate, image_size=image_size, dtype="bfloat16")
    c.augment.mix_group = gpu_batch
    return c


def evo_deit(model: str, **settings: float) -> ConfigDict:
    """Evo-ViT from scratch with DeiT's recipe: selection in every block for 200 of 300 epochs."""
    c = deit(model, "evo,keep_rate=0.5,alpha=0.5", **settings)
    c.layer_to_stage_epochs = 200
    return c


def evit(model: str, *, keep_rate: float, batch_size: int = 2048) -> ConfigDict:
    """EViT from scratch (Liang et al., 2022, and the authors' script): DeiT's recipe, batch 2048.

    The keep rate is 1 for 10 epochs, then falls along a cosine for 100, here in 8 levels.
    """
    c = deit(model, f"evit,keep_rate={keep_rate},fuse=true", batch_size=batch_size)
    c.keep_rate_start_epochs = 10
    c.keep_rate_warmup_epochs = 100
    return c


def evit_finetune(model: str, weights: str, *, keep_rate: float) -> ConfigDict:
    """EViT from dense weights (the authors' script): 30 epochs, no warm-up of anything.

    2e-5 * batch / 512 along a cosine to 2e-6, weight decay 1e-6, no stochastic depth. No average:
    the published figures are of the last weights, and DeiT's decay would leave 47 % of the dense
    ones in it.
    """
    c = deit(model, f"evit,keep_rate={keep_rate},fuse=true", drop_path_rate=0.0, batch_size=2048)
    c.init_weights = weights
    c.total_epochs, c.warmup_epochs, c.eval_epochs = 30, 0, 1
    c.optim.update(learning_rate=2e-5, min_learning_rate=2e-6, weight_decay=1e-6)
    c.ema.decay = 0.0
    return c


def levit(model: str, *, evo: bool = False) -> ConfigDict:
    """LeViT's recipe (Graham et al., 2021, Section 4.1, and the official code).

    1000 epochs of batch 8192 (32 GPUs of 256), AdamW at 5e-4 * batch / 512, weight decay 0.025,
    adaptive clipping at 0.01, DeiT's augmentation, half of the loss from RegNetY-160's labels;
    float32. `--config.distill.teacher=regnety_160,dtype=bfloat16` makes a step cheaper; that of the
    teacher is most of it.

    Args:
      model: its name.
      evo: Evo-LeViT's changes: 300 epochs of batch 2048 (8 GPUs of 256), selection in every block
        and a fixed trade-off for 200 of them, the class token's two heads in the loss.
    """
    c = imagenet()
    c.model.name = model
    c.batch_size, c.total_epochs = 8192, 1000
    c.optim.update(weight_decay=0.025, agc=0.01)
    c.augment.mix_group = 256
    c.distill.update(
        kind="hard", teacher="regnety_160", teacher_weights="hf://timm/regnety_160.deit_in1k"
    )
    if evo:
        c.batch_size, c.total_epochs, c.layer_to_stage_epochs = 2048, 300, 200
        c.distill.kind = "cls"
        c.optim.weight_decay_rules = (("reducer/tradeoff", 0.0), *c.optim.weight_decay_rules)
    return c


def evo_levit(model: str, *, image_size: int = 224, gpu_batch: int = 256) -> ConfigDict:
    """Evo-LeViT from scratch (Xu et al., 2022, and the official code), 8 GPUs of `gpu_batch`."""
    c = levit(model, evo=True)
    c.batch_size, c.model.image_size, c.augment.mix_group = 8 * gpu_batch, image_size, gpu_batch
    return c


def dynamicvit(
    model: str, weights: str, *, keep_rate: float, ratio_weight: float = 2.0
) -> ConfigDict:
    """DynamicViT from dense weights (Rao et al., 2021, Section 4.1, and the official code).

    30 epochs of batch 1024; the backbone is frozen for 5, then learns at 0.01 of the predictors'
    rate, 1e-3 (not scaled by the batch) along a cosine to 1e-6; class token and positions stay as
    they are. The dense network teaches: KL on the logits 0.5, on the tokens 0.5. float32. One view
    of each image, stochastic depth 0.
    """
    c = imagenet()
    c.model.name, c.reduction = model, f"dynamicvit,keep_rate={keep_rate}"
    c.init_weights, c.init_allow_missing = weights, "reducer/.*"
    c.distill.kind = "self"
    c.batch_size = 1024
    c.total_epochs, c.warmup_epochs, c.freeze_epochs, c.eval_epochs = 30, 5, 5, 1
    c.optim.update(learning_rate=1e-3, reference_batch=0, min_learning_rate=1e-6)
    c.optim.learning_rate_rules = (
        ("reducer/.*", 1.0),
        ("cls_token|pos_embed", 0.0),
        (".*", 0.01),
    )
    c.optim.freeze_rules = (("reducer/.*", False), (".*", True))
    c.loss.reducer_weights = (("ratio", ratio_weight), ("distill_.*", 0.5))
    c.augment.update(repeats=1, mix_group=128)
    c.ema.decay = 0.9999
    return c


def dynamic_spatial(
    model: str, weights: str, *, keep_rate: float, drop_path_rate: float = 0.2
) -> ConfigDict:
    """DynamicViT on ConvNeXt or Swin from dense weights (Rao et al., 2023, and the official code).

    120 epochs of batch 4096, 20 of them warm-up; the backbone is frozen for 5, then learns at 0.2
    of the rate of predictors and fast paths, 4e-3 (not scaled by the batch) along a cosine to 1e-6.
    The dense network teaches: KL on the logits 0.5, squared error of the last map 0.5. float32.

    Args:
      model: its name.
      weights: the dense model's.
      keep_rate: share of positions on the slow path; it falls by 0.2 at each further location.
      drop_path_rate: stochastic depth of the last block; the published one is 0.5 for base models.
    """
    c = dynamicvit(model, weights, keep_rate=keep_rate, ratio_weight=10.0)
    c.model.drop_path_rate = drop_path_rate
    c.batch_size, c.total_epochs, c.warmup_epochs = 4096, 120, 20
    c.optim.learning_rate = 4e-3
    c.optim.learning_rate_rules = (("reducer/.*", 1.0), (".*", 0.2))
    return c


def study(model: str, reduction: str, *, weights: str) -> ConfigDict:
    """The token-reduction study's fine-tuning (Haurum et al., 2023, and its README).

    30 epochs from DeiT's weights, 20 of them warm-up, 1e-3 * batch / 1024, stepped at every step,
    averages of decay 0.99996 evaluated, reduction before (or in) blocks 3, 6 and 9 down to
    `int(196 * keep_rate**k)` tokens.

    Args:
      model: its name.
      reduction: a method and its fields, without the keep rate; it is 0.7 here.
      weights: the dense model's.
    """
    c = deit(model, with_rate(reduction, 0.7))
    c.init_weights, c.init_allow_missing = weights, "reducer/.*"
    c.total_epochs, c.warmup_epochs, c.eval_epochs = 30, 20, 1
    c.optim.update(learning_rate=1e-3, reference_batch=1024)
    return c


def finish_study(config: ConfigDict, variant: str, reduction: str) -> ConfigDict:
    """`config.finish` with the study's variants: keep90, keep70, keep50 and keep25."""
    variants = {
        f"keep{round(100 * rate)}": {"reduction": with_rate(reduction, rate)}
        for rate in STUDY_RATES
    }
    return config_lib.finish(config, variant, **variants)


def with_rate(reduction: str, keep_rate: float) -> str:
    """A reduction with its keep rate."""
    name, comma, fields = reduction.partition(",")
    return f"{name},keep_rate={keep_rate}{comma}{fields}"


def on_digits(config: ConfigDict, *, image_size: int) -> None:
    """Puts a recipe on the embedded digits, in place: 40 epochs of batch 64, shifts, no teacher."""
    c = config
    c.data, c.eval_data = "tfds:digits:train", "tfds:digits:test"
    c.mean, c.std = (0.31,) * 3, (0.38,) * 3
    c.batch_size, c.eval_batch_size = 64, 360
    c.total_epochs, c.warmup_epochs, c.layer_to_stage_epochs = 40, 3, None
    c.checkpoint_epochs, c.eval_epochs, c.log_steps = 20, 10, 100
    c.model.image_size = image_size
    c.optim.update(learning_rate=1e-3, reference_batch=0)
    c.augment.update(crop="shift", pad=image_size // 8, flip=0.0, randaugment="", repeats=1)
    c.augment.update(color_jitter=0.0, erasing_prob=0.0, mixup=0.0, cutmix=0.0, mix_group=0)
    c.eval_transform.crop_fraction = 1.0
    c.distill.update(kind="none", teacher="", teacher_weights="")
    c.ema.update(decay=0.995, warmup=True)


DEIT_WEIGHTS = {
    "t": "hf://timm/deit_tiny_patch16_224.fb_in1k",
    "s": "hf://timm/deit_small_patch16_224.fb_in1k",
    "b": "hf://timm/deit_base_patch16_224.fb_in1k",
}
