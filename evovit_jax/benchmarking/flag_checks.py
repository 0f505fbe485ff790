"""Which values the benchmark's flags may have. Tested in tests/benchmark_test.py."""

import argparse

from evovit_jax.errors import UserError, shortened
from evovit_jax.inference.evaluation import MOST_BATCH
from evovit_jax.models.config_checks import MOST

MOST_ROUNDS, MOST_SECONDS = 10_000, 3600


def check(flags: argparse.Namespace) -> tuple[list[int], list[str]]:
    """(batch sizes, peers) of the flags.

    Raises:
      UserError: for a value that cannot be used, before anything is compiled.
    """
    try:
        batch_sizes = [int(part) for part in flags.batch_sizes.split(",")]
    except ValueError:
        batch_sizes = []
    if not batch_sizes or min(batch_sizes) < 1 or max(batch_sizes) > MOST_BATCH:
        raise UserError(
            f"--batch_sizes must be whole numbers of at least 1 and at most {MOST_BATCH}, got "
            f"{shortened(flags.batch_sizes, 80)!r}"
        )
    check_rounds(flags.rounds)
    if not 0 < flags.seconds <= MOST_SECONDS or (flags.chunk or 0) < 0:
        raise UserError(
            f"--seconds={flags.seconds} must be above 0 and at most {MOST_SECONDS}, --chunk not "
            "negative"
        )
    if flags.image_size is not None and not 1 <= flags.image_size <= MOST["image_size"]:
        raise UserError(
            f"--image_size={flags.image_size} must be from 1 to {MOST['image_size']} pixels"
        )
    chosen = [part for part in flags.peers.split(",") if part]
    known = ["tf", "torch"] if flags.mode == "data" else ["timm"]
    for peer in chosen:
        if peer not in known:
            raise UserError(f"--peers={peer} is unknown here; --mode={flags.mode} has {known}")
    if flags.target and (chosen or flags.mode == "data"):
        raise UserError("--target goes with inference, gradient or train, and with no --peers")
    if flags.mode == "gradient" and not flags.target:
        raise UserError("--mode=gradient is an estimate for a --target; --mode=train is measured")
    if flags.mode == "gradient" and flags.remat != "none":
        raise UserError("--remat goes with --mode=train")
    if flags.mode == "data" and not flags.data:
        raise UserError("--mode=data needs --data, for example --data=folder:DIR")
    return batch_sizes, chosen


def check_rounds(rounds: int) -> None:
    """Refuses a number of samples that tells nothing, or takes for ever.

    Raises:
      UserError: it is less than 1, or larger than anybody needs.
    """
    if not 1 <= rounds <= MOST_ROUNDS:
        raise UserError(f"--rounds={rounds} must be at least 1 and at most {MOST_ROUNDS}")
