"""A training loop whose result depends on its settings alone: not on interruptions, not on the number of workers.

Three rules make that so.

* The loop has no random state.  A recipe makes micro-batch `micro` of update `update` from those numbers and its seed.
* An update sums the gradients of several micro-batches in their order.  Worker threads compute them, each with one
  thread of its own inside operations, so each gradient is the same whoever computes it.  (Several single-threaded
  workers also lose less than one worker with several threads where other jobs use the cores: no operation waits.)
* A checkpoint holds everything, a sum of gradients that is not complete included.
"""

from __future__ import annotations

import copy
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)
NetIn = TypeVar("NetIn", bound=nn.Module, contravariant=True)


class Recipe(Protocol[NetIn]):
    """What is to be learnt."""

    micro_batches: int
    """Micro-batches of one update."""

    def loss(self, net: NetIn, update: int, micro: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one micro-batch, and numbers for the log; a function of its arguments alone."""


@dataclass(frozen=True)
class Pace:
    """How fast to learn, in updates.

    Attributes:
        updates: length of the run.
        rate: Adam's learning rate after the warm-up.
        warm_up: updates over which the rate rises from zero.
        fall: share of the run, at its end, over which the rate falls linearly.
        final: share of the rate that is left at the end.
        average: time constant of the averaged weights.
        clip: largest norm of an update's gradient.
    """

    updates: int
    rate: float
    warm_up: int = 100
    fall: float = 0.3
    final: float = 0.05
    average: float = 100.0
    clip: float = 1.0

    def rate_at(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        rising = min(1.0, (update + 1) / max(1, self.warm_up))
        left = (self.updates - update) / max(1.0, self.fall * self.updates)
        return self.rate * rising * max(self.final, min(1.0, left))

    def keep_at(self, update: int) -> float:
        """How much of the averaged weights an update keeps: young averages forget faster."""
        return min(1 - 1 / max(1.0, self.average), (1 + update) / (10 + update))


class Loop(Generic[Net]):
    """The state of a training run, and its way on."""

    def __init__(self, net: Net, recipe: Recipe[Net], pace: Pace, workers: int = 1) -> None:
        """Begin a run with the weights of `net`, which is trained in place."""
        self.net = net
        self.recipe = recipe
        self.pace = pace
        self.parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.average: Net = copy.deepcopy(net).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.parameters, lr=pace.rate, betas=(0.9, 0.99))
        self.update = 0
        self.micro = 0
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.seconds = 0.0
        self.workers = workers
        self._replicas: queue.SimpleQueue[Net] = queue.SimpleQueue()
        for _ in range(workers):
            self._replicas.put(self._replica())

    def _replica(self) -> Net:
        """A network on the same memory, for one worker: parameters are shared, graphs are not."""
        replica = copy.deepcopy(self.net)
        with torch.no_grad():
            for own, shared in zip(replica.parameters(), self.net.parameters(), strict=True):
                own.data = shared.data
        return replica

    def _work(self, update: int, micro: int) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        replica = self._replicas.get()
        try:
            loss, numbers = self.recipe.loss(replica, update, micro)
            trained = [parameter for parameter in replica.parameters() if parameter.requires_grad]
            return torch.autograd.grad(loss, trained), numbers
        finally:
            self._replicas.put(replica)

    def run(
        self,
        stop: threading.Event | None = None,
        after_micro: Callable[[int, int], None] | None = None,
        after_update: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> bool:
        """Train until the run's length or until `stop` is set, which is looked at after every micro-batch.

        Args:
            stop: set it (from a signal handler, say) to leave with the state as it is between two micro-batches.
            after_micro: called with (update, micro-batches of it that are done).
            after_update: called with (updates done, mean numbers of the update).

        Returns:
            Whether the run is complete.
        """
        stop = stop or threading.Event()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        began = time.monotonic()
        try:
            with ThreadPoolExecutor(self.workers) as pool:
                while self.update < self.pace.updates and not stop.is_set():
                    numbers = self._accumulate(pool, stop, after_micro)
                    if self.micro < self.recipe.micro_batches:
                        break
                    numbers["norm"] = self._apply()
                    now = time.monotonic()
                    self.seconds += now - began
                    began = now
                    if after_update is not None:
                        after_update(self.update, numbers)
        finally:
            self.seconds += time.monotonic() - began
            torch.set_num_threads(threads)
        return self.update >= self.pace.updates

    def _accumulate(
        self, pool: ThreadPoolExecutor, stop: threading.Event, after_micro: Callable[[int, int], None] | None
    ) -> dict[str, float]:
        """Add the gradients of the micro-batches that are left of this update, in order, and give the mean numbers."""
        places = range(self.micro, self.recipe.micro_batches)
        futures: list[Future[tuple[tuple[Tensor, ...], dict[str, float]]]] = [
            pool.submit(self._work, self.update, place) for place in places
        ]
        sums: dict[str, list[float]] = {}
        try:
            for future in futures:
                gradients, numbers = future.result()
                for total, gradient in zip(self.gradients, gradients, strict=True):
                    total.add_(gradient, alpha=1 / self.recipe.micro_batches)
                self.micro += 1
                for name, value in numbers.items():
                    sums.setdefault(name, []).append(value)
                if after_micro is not None:
                    after_micro(self.update, self.micro)
                if stop.is_set():
                    break
        finally:
            for future in futures:
                future.cancel()
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def _apply(self) -> float:
        """Step the optimiser and the averaged weights by the complete sum of gradients; give the gradient's norm."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.pace.clip))
        for group in self.optimiser.param_groups:
            group["lr"] = self.pace.rate_at(self.update)
        self.optimiser.step()
        keep = self.pace.keep_at(self.update)
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
            for gradient in self.gradients:
                gradient.zero_()
        self.update += 1
        self.micro = 0
        return norm

    def state(self) -> dict[str, Any]:
        """Everything the run's future depends on."""
        return {
            "update": self.update,
            "micro": self.micro,
            "seconds": self.seconds,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "gradients": self.gradients,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state` gave."""
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for total, saved in zip(self.gradients, state["gradients"], strict=True):
                total.copy_(saved)
        self.update = int(state["update"])
        self.micro = int(state["micro"])
        self.seconds = float(state["seconds"])

    def save(self, path: Path) -> None:
        """Write a checkpoint: complete or not at all."""
        temporary = path.with_name(path.name + ".part")
        torch.save(self.state(), temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; opening it runs no code of the file's."""
        self.load_state(torch.load(path, map_location="cpu", weights_only=True))


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that a run ends between two micro-batches with its state saved."""
    stop = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
