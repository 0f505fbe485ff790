"""A network as a saved model of TensorFlow: `pytest -m tf`, extra `tf`, 1.5 GB."""

import pytest

from evovit_jax.exporting import checked, formats, pictures
from tests.exporting.checked_test import ready


@pytest.mark.tf
def test_a_saved_model_computes_the_same_at_any_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "COUNT", 4)
    prepared = ready("evit,keep_rate=0.5,locations=1")
    file_format = formats.find("saved_model")
    about = checked.export(prepared, file_format, tmp_path / "network", dtype="uint8")
    assert (tmp_path / "network" / "saved_model.pb").is_file()
    assert about["check"]["batch_sizes"] == [1, 3]
    assert about["check"]["largest_difference"] < 1e-5
