"""What `--data` says, taken apart."""

import pytest

from evovit_jax.data.spec import DataSpec
from evovit_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tfds:digits", ("tfds", "digits", "")),
        ("tfds:digits:train[:10%]", ("tfds", "digits", "train[:10%]")),
        ("tfds:cifar10:3.0.2", ("tfds", "cifar10:3.0.2", "")),
        ("tfds:imagenet_v2/topimages:3.*.*:test", ("tfds", "imagenet_v2/topimages:3.*.*", "test")),
        ("folder:/a/b:c", ("folder", "/a/b:c", "")),
    ],
)
def test_parts(text, parts):
    spec = DataSpec.parse(text)
    assert (spec.kind, spec.name, spec.split) == parts


@pytest.mark.parametrize("text", ["digits", "", "tfds:", "folder:", "http://x/y"])
def test_another_form_is_refused(text):
    with pytest.raises(UserError, match="say tfds:NAME"):
        DataSpec.parse(text)
