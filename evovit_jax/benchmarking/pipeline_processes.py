"""The training pipelines that are measured side by side: this library's, tf.data's, PyTorch's.

Each runs in a process of its own (`python -m evovit_jax.benchmarking.pipeline_processes JSON`), so
that no library's threads or forks meet another's. It makes batches only while it is told to
measure: a line with a number of seconds on its standard input, a line of JSON on its standard
output.

Tested in tests/benchmarking/data_pipelines_test.py.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

# Batches that a pipeline may hold ready; they are taken before the clock starts.
DRAIN = 8
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
RANDAUGMENT = "rand-m9-mstd0.5-inc1"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def evovit_jax(settings: dict[str, Any]) -> Iterator[Any]:
    """uint8 batches; what the device does (normalisation, erasing) is not counted."""
    from evovit_jax.config import get_config
    from evovit_jax.data.pipeline import make_train_iterator

    config = get_config()
    config.data = settings["data"]
    config.data_threads = settings["cores"]
    config.model.image_size = settings["image_size"]
    config.augment.color_jitter = 0.0
    config.augment.randaugment = RANDAUGMENT if settings["recipe"] == "full" else ""
    return make_train_iterator(config, local_batch_size=settings["batch_size"], seed=0)


def tf_data(settings: dict[str, Any]) -> Iterator[Any]:
    """Decoding of the crop alone, bicubic resize, flip; uint8. It has no full recipe."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    size = settings["image_size"]

    def example(path, label):
        data = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros([1, 0, 4]),
            min_object_covered=0.0,
            aspect_ratio_range=RATIO,
            area_range=AREA,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], extent[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, [size, size], "bicubic")
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8), label

    paths = settings["paths"]
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = settings["cores"]
    data = tf.data.Dataset.from_tensor_slices((paths, [0] * len(paths)))
    data = data.shuffle(len(paths), seed=0).repeat()
    data = data.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.batch(settings["batch_size"], drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return iter(data.with_options(options))


def import_timm():
    """timm, where its surroundings have moved on.

    A torchvision whose compiled operators do not fit the build of torch is given their
    declarations, and Pillow 13, which refuses to keep 0 bits, the black image that it made before.
    """
    import torch
    from PIL import Image, ImageOps

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        # Kept alive by the module that timm is reached through.
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.evovit_jax_torchvision_library = library
    import timm

    posterize = ImageOps.posterize

    def posterize_or_black(image, bits):
        return posterize(image, bits) if bits else Image.new(image.mode, image.size)

    ImageOps.posterize = posterize_or_black
    return timm


def torch_dataloader(settings: dict[str, Any]) -> Iterator[Any]:
    """timm's transform in PyTorch's DataLoader, one worker process a core.

    "crop": uint8; "full": as DeiT trains, normalised to float32 and erased on the host;
    "full_uint8": without these two, as timm's own prefetching loader leaves them to the device.
    """
    import_timm()
    import torch
    from PIL import Image
    from timm.data import create_transform
    from timm.data.loader import fast_collate

    full = settings["recipe"] != "crop"
    uint8 = settings["recipe"] != "full"
    transform = create_transform(
        settings["image_size"],
        is_training=True,
        color_jitter=0.4 if full else None,
        auto_augment=RANDAUGMENT if full else None,
        interpolation="bicubic",
        re_prob=0.25 if full else 0.0,
        re_mode="pixel",
        use_prefetcher=uint8,
    )
    paths = settings["paths"]

    class Endless(torch.utils.data.Dataset):
        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            with open(paths[index % len(paths)], "rb") as file:
                return transform(Image.open(file).convert("RGB")), 0

    def shuffled():
        while True:
            yield from random.sample(range(len(paths)), len(paths))

    return iter(
        torch.utils.data.DataLoader(
            Endless(),
            batch_size=settings["batch_size"],
            sampler=shuffled(),
            num_workers=settings["cores"],
            collate_fn=fast_collate if uint8 else None,
            drop_last=True,
        )
    )


PIPELINES = {
    "evovit_jax": evovit_jax,
    "tf.data": tf_data,
    "torch DataLoader + timm": torch_dataloader,
}


def cpu_seconds() -> float:
    """Of this process and its workers, so far."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # not Linux, or the worker has ended
            fields = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    settings = json.loads(sys.argv[1])
    batches = PIPELINES[settings["framework"]](settings)
    next(batches)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        limit = float(line)
        for _ in itertools.islice(batches, DRAIN):
            pass
        start, used, count = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() - start < limit:
            next(batches)
            count += settings["batch_size"]
        seconds, used = time.perf_counter() - start, cpu_seconds() - used
        print(json.dumps({"images": count, "seconds": seconds, "cpu": used}), flush=True)
    os._exit(0)  # the pipelines' threads and workers have nothing left to say


if __name__ == "__main__":
    main()
