"""Checkpoints: everything that a run is, saved while it goes on, restored bit for bit.

A checkpoint has the training state, and beside it a JSON item `run`: the data iterator's state,
the shape of every array, a checksum of every array's bits, and one of all that (see `integrity`).
Orbax writes it in the background; the newest `keep` and the `keep_best` of the best evaluated top-1
stay.
"""

import contextlib
import functools
import gc
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

from evovit_jax.errors import UserError, first_line
from evovit_jax.parallel import agreement
from evovit_jax.workdir import integrity, orbax_messages
from evovit_jax.workdir.config_file import locate
from evovit_jax.workdir.integrity import Damaged, Unreadable

FOLDER = "checkpoints"
STATE, RECORD = "state", "run"  # the items of a checkpoint
PAUSE = 1.0  # seconds before what could not be read is tried again
State = TypeVar("State")  # a frozen dataclass of arrays
Content = TypeVar("Content")


class _Manager(ocp.CheckpointManager):
    """Orbax's, without the metrics that it keeps beside a checkpoint: `metrics.jsonl` has them."""

    def metrics(self, step: int) -> None:
        """Nothing; older checkpoints have such a file, which may be damaged."""


class _Best(managers.BestN):
    """The best by the evaluations that the run has told of, also later than it saved the step."""

    def __init__(self, n: int):
        super().__init__(
            get_metric_fn=lambda score: score, n=n, keep_checkpoints_without_metrics=False
        )
        self.scores: Mapping[int, float] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Which of the checkpoints stay."""
        scored = [
            types.SimpleNamespace(step=c.step, metrics=self.scores.get(c.step)) for c in checkpoints
        ]
        return super().should_preserve(scored, context=context)


class Checkpointer:
    """The checkpoints of one work directory.

    All processes of a run call each method at the same point. Nothing is written, and nobody else's
    half-written checkpoint removed, before the first `save`.
    """

    def __init__(self, workdir: epath.PathLike, *, keep: int = 1, keep_best: int = 0):
        self.folder = locate(workdir) / FOLDER
        self._best = _Best(keep_best)
        policies = [managers.LatestN(max(1, keep)), *([self._best] if keep_best else [])]
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self._manager: ocp.CheckpointManager | None = None

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None where there is none."""
        if self._manager is not None:
            return self._manager.latest_step()
        return max(steps_in(self.folder), default=None)

    def save(self, step: int, state: Any, data: Any, scores: Mapping[int, float]) -> None:
        """Begins to save and returns; the state may be donated at once.

        Args:
          step: steps taken.
          state: the training state.
          data: the data iterator's state, JSON.
          scores: top-1 by step, of all evaluations so far.

        Raises:
          UserError: it cannot be saved.
        """
        if self.latest_step() == step:
            return
        with agreement.all_or_none(), _said(self.folder):
            # Orbax would make it anew, without what was in it.
            if self._manager is not None and not self.folder.is_dir():
                raise FileNotFoundError("it has gone")
        self._best.scores = scores
        tree = as_tree(state)
        run = {
            "data": data,
            "shapes": integrity.shapes_of(tree),
            "checksums": integrity.checksums(tree),
        }
        run["record"] = integrity.checksum(run)
        args = ocp.args.Composite(
            **{STATE: ocp.args.StandardSave(tree), RECORD: ocp.args.JsonSave(run)}
        )
        with _said(self.folder):
            is_saved = self._open().save(step, args=args)
        if not is_saved:
            raise UserError(
                f"step {step} was not saved: {self.folder} has step {self.latest_step()} already; "
                "move that away, or choose another work directory"
            )

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            orbax_messages.keep_out()
            handlers = {
                STATE: ocp.StandardCheckpointHandler(),
                RECORD: ocp.JsonCheckpointHandler(),
            }
            self._manager = _Manager(self.folder, options=self._options, item_handlers=handlers)
        return self._manager

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

        def read(folder: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
            run = _read_record(folder)
            tree = as_tree(like)
            integrity.check_shapes(run["shapes"], integrity.shapes_of(tree), f"checkpoint {folder}")
            return _restore_arrays(folder, tree), run

        def verify(content: tuple[dict[str, Any], dict[str, Any]], step: int) -> None:
            integrity.check_arrays(content[0], content[1]["checksums"], step)

        steps = agreement.from_first(steps_in(self.folder))
        if not steps:
            return None
        (tree, run), damaged = _newest_whole(
            self.folder, steps, read, verify, functools.partial(print, flush=True)
        )
        with agreement.all_or_none():
            if jax.process_index() == 0:
                _set_aside(self.folder, damaged)
        return type(like)(**tree), run["data"]

    def wait(self) -> None:
        """Returns when everything that was begun is on disk.

        Raises:
          UserError: it cannot be saved.
        """
        if self._manager is not None:
            with _said(self.folder):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with _said(self.folder):
                manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif jax.process_count() == 1:  # with several, Orbax would wait for the others
            with contextlib.suppress(UserError):  # the first error is the one to tell
                self.close()


@contextlib.contextmanager
def _said(folder: epath.Path) -> Iterator[None]:
    """A failed save as one line; Orbax and TensorStore raise many kinds of errors."""
    try:
        yield
    except Exception as error:
        # Of what Orbax had begun with this save Python would say that nobody waited for it.
        warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
        raise UserError(
            f"a checkpoint could not be saved in {folder} ({first_line(error, 200)}); see that the "
            "folder is there, can be written and has room, then start again"
        ) from error


def steps_in(folder: epath.Path) -> list[int]:
    """The steps of all checkpoints of a folder that were saved to the end, ascending.

    Raises:
      UserError: the folder is none.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; checkpoints need a folder of that name")
    found = ocp.path.step.standard_name_format().find_all(folder) if folder.exists() else []
    return sorted(metadata.step for metadata in found)


def _newest_whole(
    folder: epath.Path,
    steps: list[int],
    read: Callable[[epath.Path], Content],
    verify: Callable[[Content, int], None],
    say: Callable[[str], None],
) -> tuple[Content, list[int]]:
    """Reads the newest checkpoint that is whole; the same one on all processes.

    Args:
      folder: of the checkpoints.
      steps: which there are to choose from.
      read: reads one on its own, without the other processes.
      verify: raises `Damaged` for what was read of a step; may ask the other processes.
      say: the first process reports with it those that it passes over.

    Returns:
      What was read, and the steps that are damaged.

    Raises:
      UserError: one cannot be read now or is of another run, or all are damaged.
    """
    damaged = []
    for step in sorted(steps, reverse=True):
        content, failure = _attempt(folder / str(step), read)
        reason = _worst(failure)
        if reason is None:
            try:
                verify(content, step)
                return content, damaged
            except Damaged as error:
                reason = str(error)
        if jax.process_index() == 0:
            say(f"checkpoint {step} is damaged ({reason})")
        damaged.append(step)
    raise UserError(f"all checkpoints of {folder} are damaged; remove it to start again")


def _attempt(
    folder: epath.Path, read: Callable[[epath.Path], Content]
) -> tuple[Content | None, Exception | None]:
    """What `read` returns, or what the checkpoint suffers from at the second try too."""
    failure = None
    with integrity.hushed():
        for pause in (PAUSE, 0):
            try:
                return read(folder), None
            except UserError as error:
                return None, error
            except Exception as error:  # Orbax and TensorStore raise many kinds
                failure = integrity.cause(error, folder)
                if isinstance(failure, Unreadable):
                    failure = UserError(
                        f"checkpoint {folder} cannot be read now ({failure}); nothing was "
                        "changed: try again"
                    )
            gc.collect()  # what the failed reads leave
            time.sleep(pause)
    return None, failure


def _worst(failure: Exception | None) -> str | None:
    """Why a checkpoint is damaged on any of the processes; None if it is whole on all.

    Raises:
      UserError: one of them could not read it now, or may not.
    """
    with agreement.all_or_none():
        if isinstance(failure, UserError):
            raise failure
    reasons = agreement.gather(None if failure is None else str(failure))
    return next((reason for reason in reasons if reason is not None), None)


def _set_aside(folder: epath.Path, steps: list[int]) -> None:
    """Frees the places of damaged checkpoints, which stay beside them."""
    for step in steps:
        names = (f"damaged_{step}{more}" for more in ("", *map("_{}".format, range(2, 99))))
        free = next(name for name in names if not (folder / name).exists())
        try:
            (folder / str(step)).rename(folder / free)
        except OSError as error:
            raise UserError(f"{folder / str(step)} cannot be renamed: {error}") from error


def as_tree(state: Any) -> dict[str, Any]:
    """The state's fields by name."""
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def load_variables(
    path: epath.PathLike, step: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluated parameters and statistics of a run, on the host: its averages if it has any.

    Args:
      path: a work directory, or its folder of checkpoints.
      step: which checkpoint; None for the newest that is whole. Damaged ones are reported.

    Raises:
      UserError: there is no such checkpoint, or none that is whole.
    """
    path = locate(path)
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = agreement.from_first(steps_in(folder))
    if not steps or (step is not None and step not in steps):
        raise UserError(f"{path} has no checkpoint" + ("" if step is None else f" of step {step}"))
    if step is not None:
        steps = [step]

    def warn(text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # what a command prints is the command's

    tree, _ = _newest_whole(
        folder, steps, lambda folder: read(folder, evaluated_part), lambda *_: None, warn
    )
    values = tree.get("ema", tree)
    return values["params"], values.get("stats") or {}


def evaluated_part(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a checkpoint's state, what is evaluated, and the step that it is of."""
    names = ("ema",) if tree.get("ema") else ("params", "stats")
    return {name: tree.get(name) or {} for name in (*names, "step")}


def read(folder: epath.PathLike, part: Callable[[dict], dict] = dict) -> dict[str, Any]:
    """Arrays of one checkpoint's state on the host, `part` of them (of their shapes).

    Raises:
      Damaged: they are not what was saved. Orbax and TensorStore raise other errors too.
    """
    folder = locate(folder)
    run = _read_record(folder)
    handler = ocp.PyTreeCheckpointHandler()
    shapes = part(handler.metadata(folder / STATE).tree)
    item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)
    kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=kinds, partial_restore=True)
    tree = handler.restore(folder / STATE, args=args)
    integrity.check_arrays(tree, run["checksums"], int(folder.name))
    return tree


def _read_record(folder: epath.Path) -> dict[str, Any]:
    """The JSON beside the arrays of one checkpoint, checked."""
    integrity.check_files(folder)
    run = ocp.JsonCheckpointHandler().restore(folder / RECORD)
    integrity.check_record(run)
    return run


def _restore_arrays(folder: epath.Path, tree: dict[str, Any]) -> dict[str, Any]:
    """The arrays of one checkpoint, placed as `tree` says.

    Orbax's handler reads without the other processes; its checkpointers end with a barrier, at
    which those would wait for one that has found damage.
    """
    args = ocp.args.StandardRestore(tree)
    return ocp.StandardCheckpointHandler().restore(folder / STATE, args=args)
