"""What classes are called."""

import pytest

from evovit_jax.class_names import class_names
from evovit_jax.errors import UserError


def test_imagenet_has_a_thousand_different_names():
    names = class_names(1000)
    assert len(set(names)) == 1000
    places = {0: "tench", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {i: names[i] for i in places} == places
    assert names[134] != names[517]  # two kinds of crane


def test_names_of_other_classes(tmp_path):
    assert class_names(2) == ["class 0", "class 1"]
    file = tmp_path / "names.txt"
    file.write_text("cat\ndog\n")
    assert class_names(2, file=str(file)) == ["cat", "dog"]
    with pytest.raises(UserError, match="2 lines for 3 classes"):
        class_names(3, file=str(file))
    with pytest.raises(UserError, match="cannot read class names"):
        class_names(3, file=str(tmp_path / "none.txt"))
