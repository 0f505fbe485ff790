"""The benchmark's table."""

from evovit_jax.benchmarking import report as benchmark_report


def test_the_report_shows_what_is_unknown():
    row = dict.fromkeys(benchmark_report.COLUMNS, 1) | {
        "dtype": "float32",
        "mode": "inference",
        "peak_memory_mb": None,
    }
    found = {"device": "cpu", "matmul_peak_gflops": None, "rows": [row]}
    table = benchmark_report.table(found)
    assert table.splitlines()[0] == "cpu, float32, inference"
    assert "| - |" in table.splitlines()[-1]
