"""Every field of a run, once: its meaning and its default.

A recipe (`configs/NAME.py`) starts from `get_config()`, overrides what it needs and ends with
`finish(config, variant)`; the command line overrides the recipe (`--config.batch_size=128`).
Fields cannot be added outside this file, so a misspelt one is an error.

Durations come in three units, `NAME_steps`, `NAME_epochs` and `NAME_examples`, of which one is
given; one given on the command line replaces its siblings. Rules are (regular expression, value)
pairs over parameter names such as "blocks/0/attn/qkv/kernel"; the first that matches a whole name
counts, and every name must be matched.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from evovit_jax.data.stored_files import MOST_PIXELS

RANDOM = "random"  # in the place of a teacher's weights: an untrained one, to try things out


def get_config() -> ConfigDict:
    """The defaults: a dense DeiT-S on the embedded digits, with DeiT's recipe."""
    c = ConfigDict()
    c.seed = 0  # of everything random: initial values, order of the data, augmentation, drop path
    # --- data ---
    c.data = "tfds:digits:train"  # tfds:NAME[:SPLIT] or folder:PATH
    # Likewise; "" = the data set of `data`, its validation split, else its test split (tfds only).
    c.eval_data = ""
    c.data_dir = ""  # where TFDS data sets lie; "" = EVOVIT_DATA_DIR, else TFDS's own default
    c.data_threads = 0  # threads that decode and augment; 0 = one a core
    # Processes that do so instead of threads, where one Python cannot fill the cores; 0 = none.
    c.data_processes = 0
    c.data_limit_unreadable = 10  # unreadable images that a run skips and names before it stops
    # Width times height that an image may have; larger ones are unreadable. One takes up to ten
    # bytes a pixel while it is decoded, in each thread.
    c.max_image_pixels = MOST_PIXELS
    c.mean = (0.485, 0.456, 0.406)  # of the pixels in 0..1, subtracted on the device
    c.std = (0.229, 0.224, 0.225)  # of the pixels in 0..1, divided by on the device
    c.batch_size = 1024  # examples an optimiser step, over all devices and micro-batches
    c.eval_batch_size = 1024  # examples an evaluation step, over all devices
    c.accumulate = 1  # micro-batches that a step's batch is computed in, one after another
    # Of the sums, over devices too, that are the gradients of narrower layers; or bfloat16.
    c.grad_reduce_dtype = "float32"
    # --- durations ---
    _duration(c, "total", epochs=300)  # of the training
    _duration(c, "warmup", epochs=5)  # of the learning rate's linear rise
    _duration(c, "checkpoint", epochs=1)  # between checkpoints; the last step is always saved
    _duration(c, "eval", epochs=5)  # between evaluations; the last step is always evaluated
    _duration(c, "log", steps=50)  # between lines of metrics (the only times the host waits)
    # Of Evo-ViT's selection in every block, before it selects once a stage; none = 2/3 of total.
    _duration(c, "layer_to_stage")
    _duration(c, "keep_rate_start")  # before the keep rate begins to fall from 1; none = at once
    _duration(c, "keep_rate_warmup")  # of the keep rate's fall to the reducer's own; none = at once
    _duration(c, "freeze")  # of what `optim.freeze_rules` freezes; none = the whole training
    c.keep_rate_levels = 8  # keep rates of that fall: each is a compiled program of its own
    # --- what is trained ---
    c.model = _model()
    # A token reduction and its fields, "evo,keep_rate=0.5"; "" = the model's own, "none" = dense.
    c.reduction = ""
    c.init_weights = ""  # a checkpoint or weight file to start from; "" = random initial values
    # A pattern: variables that init_weights may lack, tensors of it that are not used; "" = none.
    c.init_allow_missing = ""
    # --- how ---
    c.optim = _optim()
    c.augment = _augment()
    c.eval_transform = _eval_transform()
    c.loss = _loss()
    c.distill = _distill()
    c.ema = ConfigDict()
    c.ema.decay = 0.99996  # of the average that is evaluated and exported; 0 = no average
    c.ema.warmup = False  # whether the decay rises as (1 + step) / (10 + step), for short runs
    c.mesh = _mesh()  # where the batch and the parameters are split
    # --- what is kept ---
    c.keep_checkpoints = 2  # the newest ones
    c.keep_best = 1  # and those of the best evaluated top-1
    c.visualize_images = 0  # how many images TensorBoard shows the tokens of; 0 = none
    # Steps to trace with JAX's profiler into the work directory's profile/, "100:110"; "" = none.
    c.profile_steps = ""
    return c.lock()


def _duration(c: ConfigDict, name: str, **given: float) -> None:
    c[f"{name}_steps"] = placeholder(int)
    c[f"{name}_epochs"] = placeholder(float)
    c[f"{name}_examples"] = placeholder(int)
    for unit, value in given.items():
        c[f"{name}_{unit}"] = value


def _model() -> ConfigDict:
    c = ConfigDict()
    c.name = "deit_small_patch16_224"  # see evovit_jax.list_models(); None below = the model's own
    c.num_classes = placeholder(int)  # None = the data set's
    c.image_size = 224  # pixels, height and width
    c.patch_size = placeholder(int)  # pixels
    # A pyramid has several of each, one a stage: "(128,256,384)".
    c.embed_dim = placeholder(object)
    c.depth = placeholder(object)  # blocks
    c.num_heads = placeholder(object)  # of attention
    c.key_dim = placeholder(int)  # LeViT: width of a head's keys
    c.mlp_ratio = placeholder(float)  # hidden width of a feed-forward over embed_dim
    c.drop_path_rate = placeholder(float)  # stochastic depth of the last block, linear from 0
    c.dtype = "float32"  # of activations and matmuls; parameters stay float32
    c.remat = "none"  # what the backward pass recomputes to save memory: none, full or dots
    c.attention_kernel = "auto"  # auto, matmul or fused
    return c


def _mesh() -> ConfigDict:
    c = ConfigDict()
    c.data = -1  # devices along "data": the batch is split, parameters are copied; -1 = rest
    c.fsdp = 1  # devices along "fsdp": the batch is split, and parameters are too
    # "fsdp": split along the largest dimension that divides; "replicate": copied.
    c.rules = ((".*", "fsdp"),)
    return c


def _optim() -> ConfigDict:
    c = ConfigDict()
    c.name = "adamw"  # adamw or lamb
    c.learning_rate = 5e-4  # the peak, for `reference_batch` examples a step
    c.reference_batch = 512  # the rate is scaled by batch_size / reference_batch; 0 = not scaled
    c.warmup_learning_rate = 1e-6  # where the linear rise starts; not scaled
    c.min_learning_rate = 1e-5  # where the cosine ends; not scaled
    c.beta1 = 0.9  # decay of the first moment
    c.beta2 = 0.999  # decay of the second moment
    c.eps = 1e-8  # added to the root of the second moment
    c.weight_decay = 0.05  # decoupled, times the learning rate
    # Multiplies weight_decay. As in DeiT: none on biases, norms, tokens and positions.
    c.weight_decay_rules = (
        (r".*(bias|scale|gamma|cls_token|dist_token|pos_embed)", 0.0),
        (r".*", 1.0),
    )
    c.learning_rate_rules = ((".*", 1.0),)  # multiplies the learning rate
    c.freeze_rules = ((".*", False),)  # True: the parameter keeps its first value (see freeze_*)
    c.clip_norm = 0.0  # the gradient's largest global norm; 0 = not clipped
    c.agc = 0.0  # adaptive clipping: largest norm of a unit's gradient over its weight's; 0 = off
    return c


def _augment() -> ConfigDict:
    c = ConfigDict()
    # rrc: random resized crop; src: DeiT III's simple random crop, `pad` px mirrored; pad: resize,
    # pad by `pad` with zeros, crop; shift: sub-pixel shift by up to `pad` px, edges repeated; none:
    # the evaluation transform.
    c.crop = "rrc"
    c.scale = (0.08, 1.0)  # rrc: share of the image's area
    c.ratio = (3 / 4, 4 / 3)  # rrc: width over height
    c.pad = 4  # pad and shift: pixels of the model's image
    c.flip = 0.5  # probability of a left-right flip
    c.interpolation = "bicubic"  # bicubic, bilinear, or random (one of the two for each image)
    c.randaugment = "rand-m9-mstd0.5-inc1"  # timm's notation; "" = none
    c.three_augment = False  # DeiT-III's: one of greyscale, solarise, blur
    c.color_jitter = 0.4  # strength; as in timm not used beside randaugment
    c.repeats = 1  # repeated augmentation: views of an image in a batch (DeiT: 3)
    c.erasing_prob = 0.25  # device: random erasing with noise, share of the images
    c.mixup = 0.8  # device: Beta parameter, 0 = off
    c.cutmix = 1.0  # device: Beta parameter, 0 = off
    c.mix_prob = 1.0  # device: probability that a batch is mixed at all
    c.mix_switch_prob = 0.5  # device: probability of cutmix where both are on
    # Device: examples that share one draw of the ratio and the box (timm: one GPU's batch); 0 = all
    # of a step's. Partners are neighbours, whatever it is.
    c.mix_group = 0
    return c


def _eval_transform() -> ConfigDict:
    c = ConfigDict()
    c.resize = 0  # shorter side in pixels before the centre crop; 0 = image_size / crop_fraction
    c.crop_fraction = 0.875  # side of the crop over the shorter side before it
    c.interpolation = "bicubic"  # bicubic, bilinear, lanczos or nearest
    return c


def _loss() -> ConfigDict:
    c = ConfigDict()
    c.name = "softmax"  # softmax: cross entropy; sigmoid: binary cross entropy over the classes
    c.label_smoothing = 0.1  # share of the target that is spread over all classes
    # Share of the auxiliary class-token head: (1 - w) * L(logits) + w * L(cls), where there is one.
    c.cls_weight = 0.5
    c.reducer_weights = ((".*", 1.0),)  # rules over the names of a reducer's own losses
    return c


def _distill() -> ConfigDict:
    c = ConfigDict()
    # none; soft, hard or cls: from `teacher`; self: DynamicViT's, from the model without reduction.
    # See evovit_jax/train/distillation.py.
    c.kind = "none"
    c.teacher = ""  # a model and fields of it, "regnety_160,dtype=bfloat16"; frozen
    # Its weights; "" with kind self = init_weights; "random" = untrained, to try things out.
    c.teacher_weights = ""
    c.alpha = 0.5  # soft, hard, cls: the teacher's share of the loss
    c.tau = 3.0  # soft: temperature
    return c


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """All fields by their full names, such as "optim.learning_rate"."""
    names = []
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            names += field_names(value, f"{prefix}{key}.")
        else:
            names.append(prefix + key)
    return names


def value_of(config: ConfigDict, name: str) -> Any:
    """The value of the field of this full name."""
    found: Any = config
    for part in name.split("."):
        found = found[part]
    return found
