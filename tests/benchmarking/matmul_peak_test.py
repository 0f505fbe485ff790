"""Which matmuls the peak is measured at."""

from evovit_jax.benchmarking import matmul_peak
from evovit_jax.models import abstract_model


def test_the_peak_is_measured_at_the_models_shapes():
    model = abstract_model("evo_deit_small_patch16_224")
    shapes = matmul_peak.matmul_shapes(model, 16)
    assert {(3152, 384, 1152), (3152, 384, 1536), (1600, 384, 1152), (1600, 1536, 384)} < shapes
    assert matmul_peak.largest(shapes, 1) == [(3152, 1536, 384)]
    assert matmul_peak.operations((2, 3, 5)) == 60
    assert matmul_peak.matmul((2, 3, 5), "float32")().shape == (2, 5)
