"""timm's models in a process of their own, to be timed in turns with ours (extra `torch`).

The child reads one JSON request a line and answers each with one line: `{"make": ...}` builds a
model and runs it once, `{"run": number, "repeats": n}` times it.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from evovit_jax.benchmarking import child_process
from evovit_jax.benchmarking.pipeline_processes import import_timm
from evovit_jax.errors import UserError

VARIANTS = ("timm eager", "timm compiled")


class Peer:
    """The parent's end of the child."""

    def __init__(self, process: subprocess.Popen):
        self._process = process

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The child's answer.

        Raises:
          UserError: the child has ended; its error output says why.
        """
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError("timm's process ended without an answer; its error is above")
        return json.loads(line)

    def make(self, **settings: Any) -> dict[str, Any]:
        """Builds a model: `number`, `compile_seconds`; `number` is None for one timm has not."""
        return self.ask({"make": settings})

    def measure(self, number: int) -> Callable[[int], float]:
        """What `evovit_jax.benchmarking.timing.interleave` takes."""
        return lambda repeats: self.ask({"run": number, "repeats": repeats})["seconds"]

    def peak_memory_mb(self, number: int) -> float | None:
        """The largest memory of a pass; None where PyTorch does not say (CPU)."""
        return self.ask({"memory": number})["peak_memory_mb"]


@contextlib.contextmanager
def start() -> Iterator[Peer]:
    """The child, ended with the context.

    Raises:
      UserError: PyTorch or timm is not installed.
    """
    for package in ("torch", "timm"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--peers=timm needs {package}: pip install 'evovit_jax[torch]'")
    with child_process.start("evovit_jax.benchmarking.timm_models") as process:
        yield Peer(process)


class _Models:
    """The child's models, by number."""

    def __init__(self):
        import torch

        self.torch, self.calls = torch, []
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.timm = import_timm()

    def make(self, settings: dict[str, Any]) -> dict[str, Any]:
        name, torch = settings["model"], self.torch
        if not self.timm.is_model(name):
            return {"number": None, "compile_seconds": 0.0}
        training = settings["mode"] == "train"
        # Mixed precision in training; inference in the dtype itself, its fastest.
        dtype = getattr(torch, settings["dtype"])
        model = self.timm.create_model(name).to(self.device).train(training)
        if not training:
            model = model.to(dtype)
        size, batch = settings["image_size"], settings["batch_size"]
        shape = (batch, 3, size, size)
        images = torch.randn(shape, device=self.device, dtype=torch.float32 if training else dtype)
        run = torch.compile(model) if settings["compiled"] else model
        call = self._train(model, run, images, dtype) if training else self._infer(run, images)
        start = time.perf_counter()
        call()
        self._wait()
        self.calls.append(call)
        return {"number": len(self.calls) - 1, "compile_seconds": time.perf_counter() - start}

    def _infer(self, run: Callable, images: Any) -> Callable[[], Any]:
        def call() -> Any:
            with self.torch.inference_mode():
                return run(images)

        return call

    def _train(self, model: Any, run: Callable, images: Any, dtype: Any) -> Callable[[], Any]:
        torch = self.torch
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
        labels = torch.zeros(len(images), dtype=torch.long, device=self.device)
        mixed = dtype != torch.float32

        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device, dtype=dtype, enabled=mixed):
                loss = torch.nn.functional.cross_entropy(run(images), labels)
            loss.backward()
            optimizer.step()

        return call

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def run(self, number: int, repeats: int) -> dict[str, Any]:
        call = self.calls[number]
        call()
        self._wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self._wait()
        return {"seconds": (time.perf_counter() - start) / repeats}

    def memory(self, number: int) -> dict[str, Any]:
        if self.device != "cuda":
            return {"peak_memory_mb": None}
        self.torch.cuda.reset_peak_memory_stats()
        self.calls[number]()
        self._wait()
        return {"peak_memory_mb": self.torch.cuda.max_memory_allocated() / 2**20}


def main() -> None:
    """The child."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    models = _Models()
    for line in sys.stdin:
        request = json.loads(line)
        if "make" in request:
            answer = models.make(request["make"])
        elif "run" in request:
            answer = models.run(request["run"], request["repeats"])
        else:
            answer = models.memory(request["memory"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
