"""Which values the benchmark's flags may have. Tested in tests/benchmark_test.py."""

import argparse

from evovit_jax.errors import UserError


def check(flags: argparse.Namespace) -> tuple[list[int], list[str]]:
    """(batch sizes, peers) of the flags.

    Raises:
      UserError: for a value that cannot be used, before anything is compiled.
    """
    try:
        batch_sizes = [int(part) for part in flags.batch_sizes.split(",")]
    except ValueError:
        batch_sizes = []
    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError(
            f"--batch_sizes must be whole numbers of at least 1, got {flags.batch_sizes!r}"
        )
    if flags.rounds < 1 or flags.seconds <= 0 or (flags.chunk or 0) < 0:
        raise UserError("--rounds must be at least 1, --seconds positive, --chunk not negative")
    chosen = [part for part in flags.peers.split(",") if part]
    known = ["tf", "torch"] if flags.mode == "data" else ["timm"]
    for peer in chosen:
        if peer not in known:
            raise UserError(f"--peers={peer} is unknown here; --mode={flags.mode} has {known}")
    if flags.target and (chosen or flags.mode == "data"):
        raise UserError("--target goes with --mode=inference or train, and with no --peers")
    if flags.mode == "data" and not flags.data:
        raise UserError("--mode=data needs --data, for example --data=folder:DIR")
    return batch_sizes, chosen
