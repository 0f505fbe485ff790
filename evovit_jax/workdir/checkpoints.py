"""Checkpoints: everything that a run is, saved while it goes on, restored bit for bit.

A checkpoint has the training state, and beside it a JSON item `run`: the data iterator's state,
the shape of every array, and a checksum of every array's bits. Orbax writes it in the background;
the newest `keep` and the `keep_best` of the best evaluated top-1 stay.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from evovit_jax.errors import UserError, first_line
from evovit_jax.workdir import abandoned_reads
from evovit_jax.workdir.config_file import locate

FOLDER = "checkpoints"
State = TypeVar("State")  # a frozen dataclass of arrays
METRIC = "val_top1"
# The metric of a checkpoint without an evaluation: it is never the best while another has one.
UNEVALUATED = -1.0
# What storage or memory says that may be there again the next time, in the words of the system,
# of TensorStore and of XLA. Files that are missing are damage: they do not come back.
PASSING = re.compile(
    r"input/output error|stale file handle|timed out|timeout|deadline|unavailable|connection|"
    r"too many open files|permission denied|resource_exhausted|cannot allocate|out of memory",
    re.IGNORECASE,
)


class Damaged(Exception):
    """What was restored is not what was saved."""


def _may_pass(error: Exception, folder: epath.Path) -> bool:
    """Whether a checkpoint of `folder` that could not be read may be whole."""
    if isinstance(error, MemoryError):
        return True
    missing = FileNotFoundError | IsADirectoryError | NotADirectoryError
    if isinstance(error, OSError) and not isinstance(error, missing):
        return True
    return PASSING.search(str(error).replace(str(folder), "")) is not None


class Checkpointer:
    """The checkpoints of one work directory."""

    def __init__(self, workdir: epath.PathLike, *, keep: int = 1, keep_best: int = 0):
        self.folder = locate(workdir) / FOLDER
        _mend_metrics(self.folder)
        policies = [managers.LatestN(max(1, keep))]
        if keep_best:
            policies.append(managers.BestN(get_metric_fn=_metric, n=keep_best))
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=managers.AnyPreservationPolicy(policies),
                best_fn=_metric,
                cleanup_tmp_directories=True,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: Any, metrics: Mapping | None) -> None:
        """Begins to save and returns; the state may be donated at once.

        Args:
          step: steps taken.
          state: the training state.
          data: the data iterator's state, JSON.
          metrics: of the evaluation at this step, None where there was none.
        """
        if self._manager.latest_step() == step:
            return
        tree = as_tree(state)
        run = {"data": data, "shapes": shapes_of(tree), "checksums": checksums(tree)}
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(tree), run=ocp.args.JsonSave(run)),
            metrics={METRIC: (metrics or {}).get(METRIC, UNEVALUATED)},
        )

    def restore(self, like: State) -> tuple[State, Any] | None:
        """The newest checkpoint that is whole, and the data iterator's state in it.

        Damaged ones are reported and passed over, and renamed to `damaged_STEP` where an older one
        is whole. Nothing is renamed because storage does not answer.

        Args:
          like: shapes, dtypes and shardings of the state.

        Returns:
          None where there is no checkpoint.

        Raises:
          UserError: the checkpoint is of another architecture or optimiser, cannot be read now, or
            all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abandoned_reads.hush()
        damaged = []
        for step in steps:
            try:
                found = self._restore(step, like)
            except UserError:
                raise
            except Exception as error:
                reason = first_line(error, 200)
                if _may_pass(error, self.folder):
                    raise UserError(
                        f"checkpoint {self.folder / str(step)} cannot be read now ({reason}); "
                        "nothing was changed: try again"
                    ) from error
                print(f"checkpoint {step} is damaged ({reason})", flush=True)
                damaged.append(step)
            else:
                self._set_aside(damaged)
                return found
        if steps:
            raise UserError(
                f"all checkpoints of {self.folder} are damaged; remove it to start again"
            )
        return None

    def _restore(self, step: int, like: State) -> tuple[State, Any]:
        run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore())).run
        tree = as_tree(like)
        check_shapes(run["shapes"], shapes_of(tree), f"checkpoint {self.folder / str(step)}")
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(tree))
        ).state
        for name, found in checksums(restored).items():
            if found != run["checksums"][name]:
                raise Damaged(f"the checksum of {name} is wrong")
        return type(like)(**restored), run["data"]

    def _set_aside(self, steps: list[int]) -> None:
        """Frees the places of damaged checkpoints, which stay beside them."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                names = (f"damaged_{step}{more}" for more in ("", *map("_{}".format, range(2, 99))))
                free = next(name for name in names if not (self.folder / name).exists())
                (self.folder / str(step)).rename(self.folder / free)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint set aside")
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything that was begun is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self._manager.close()


def _mend_metrics(folder: epath.Path) -> None:
    """Lets checkpoints with damaged metrics count as not evaluated; Orbax could read none then."""
    if jax.process_index() == 0 and folder.is_dir():
        for path in folder.glob("[0-9]*/metrics/metrics"):
            try:
                json.loads(path.read_text())
            except ValueError:
                print(f"the metrics in {path} are damaged: that step counts as not evaluated")
                path.write_text(json.dumps({METRIC: UNEVALUATED}))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("metrics of the checkpoints looked at")


def _metric(metrics: Mapping[str, float]) -> float:
    return metrics[METRIC]


def as_tree(state: Any) -> dict[str, Any]:
    """The state's fields by name."""
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def shapes_of(tree: Any) -> dict[str, str]:
    """Shape and dtype of every array of a tree by its path, such as "params/cls_token"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_shapes(saved: dict[str, str], wanted: dict[str, str], what: str) -> None:
    """Refuses a checkpoint that does not fit the run.

    Raises:
      UserError: naming what differs; parameters first, since the rest follows from them.
    """
    differing = []
    for name in [*wanted, *(name for name in saved if name not in wanted)]:
        if saved.get(name) != wanted.get(name):
            is_shape = name in saved and name in wanted
            text = (
                f"{saved[name]} there, {wanted[name]} here"
                if is_shape
                else ("only there" if name in saved else "only here")
            )
            differing.append((not name.startswith("params/"), f"{name} ({text})"))
    if not differing:
        return
    differing.sort(key=lambda item: item[0])
    of_params = [text.removeprefix("params/") for late, text in differing if not late]
    shown = of_params or [text for _, text in differing]
    more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
    kind = "another architecture" if of_params else "another optimiser, average or loss"
    raise UserError(
        f"{what} is of {kind}: {'; '.join(shown[:8])}{more}. "
        "Use its config, or another work directory"
    )


def checksums(tree: Any) -> dict[str, int]:
    """For every array the sum of its bits as 32-bit words, modulo 2^32, by its path.

    Addition does not depend on the order, so the sum is the same however an array is sharded.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get(_sum_bits([leaf for _, leaf in leaves]))
    return {_name(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


@jax.jit
def _sum_bits(leaves: list[jax.Array]) -> list[jax.Array]:
    def one(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.bool_:
            return x.sum(dtype=jnp.uint32)
        words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        return words.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return [one(leaf) for leaf in leaves]


def load_variables(
    path: epath.PathLike, step: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluated parameters and statistics of a run, on the host: its averages if it has any.

    Args:
      path: a work directory, or its folder of checkpoints.
      step: which checkpoint; None for the newest.

    Raises:
      UserError: there is no such checkpoint.
    """
    path = locate(path)
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit())
    if not steps or (step is not None and step not in steps):
        raise UserError(f"{path} has no checkpoint" + ("" if step is None else f" of step {step}"))
    tree = read(folder / str(steps[-1] if step is None else step), evaluated_part)
    found = tree.get("ema", tree)
    return found["params"], found.get("stats") or {}


def evaluated_part(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a checkpoint's state, what is evaluated."""
    if tree.get("ema"):
        return {"ema": tree["ema"]}
    return {name: tree.get(name) or {} for name in ("params", "stats")}


def read(folder: epath.PathLike, part: Callable[[dict], dict] = dict) -> dict[str, Any]:
    """Arrays of one checkpoint's state on the host, `part` of them (of their shapes)."""
    path = locate(folder) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        shapes = part(reader.metadata(path).item_metadata.tree)
        item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=kinds, partial_restore=True)
        return reader.restore(path, args=args)
