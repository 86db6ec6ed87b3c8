"""The training loop: the same weights whatever interrupts it and however many workers it has."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from enlarger.training.loop import Loop, Pace, stop_on_signals


class Noisy:
    """A recipe whose micro-batches depend on (update, micro) alone, as a recipe must."""

    micro_batches = 3

    def loss(self, net: nn.Module, update: int, micro: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(1000 * update + micro)
        inputs = torch.randn(4, 3, 9, 9, generator=generator)
        loss = (net(inputs) - inputs[:, :2].cos()).square().mean()
        return loss, {"loss": float(loss.detach())}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))


def loop(workers: int = 1, updates: int = 6, **pace: float) -> Loop[nn.Module]:
    return Loop(network(), Noisy(), Pace(updates, rate=1e-2, warm_up=2, average=4.0, **pace), workers)


def everything(run: Loop[nn.Module]) -> list[Tensor]:
    moments = [value for state in run.optimiser.state.values() for value in state.values()]
    return [*run.net.parameters(), *run.average.parameters(), *run.gradients, *moments]


def assert_same(first: Loop[nn.Module], second: Loop[nn.Module]) -> None:
    assert (first.update, first.micro) == (second.update, second.micro)
    for one, two in zip(everything(first), everything(second), strict=True):
        assert torch.equal(one, two)


@pytest.fixture(scope="module")
def reference() -> Loop[nn.Module]:
    whole = loop()
    assert whole.run()
    return whole


def test_training_learns(reference: Loop[nn.Module]) -> None:
    before, after = (Noisy().loss(net, 99, 0)[1]["loss"] for net in (network(), reference.net))
    assert after < 0.8 * before


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_no_bit(workers: int, reference: Loop[nn.Module]) -> None:
    several = loop(workers)
    assert several.run()
    assert_same(several, reference)


@pytest.mark.parametrize("stop_at", [(0, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("workers", [1, 2])
def test_going_on_changes_no_bit(
    stop_at: tuple[int, int], workers: int, reference: Loop[nn.Module], tmp_path: Path
) -> None:
    stop = threading.Event()

    def after_micro(update: int, done: int) -> None:
        if (update, done) == stop_at:
            stop.set()

    first = loop(workers)
    assert not first.run(stop, after_micro)
    # A stop after the last micro-batch lets the update finish; inside an update it stays open.
    inside = stop_at[1] < Noisy.micro_batches
    assert (first.update, first.micro) == (stop_at if inside else (stop_at[0] + 1, 0))
    assert any(gradient.any() for gradient in first.gradients) == inside
    first.save(tmp_path / "training.pt")

    second = loop(3 - workers)
    with torch.no_grad():
        for parameter in second.net.parameters():
            parameter.fill_(7.0)  # nothing of the fresh network may survive
    second.load(tmp_path / "training.pt")
    assert_same(second, first)
    assert second.run()
    assert_same(second, reference)


def test_a_checkpoint_is_complete_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "training.pt"
    run = loop()
    run.save(path)
    before = path.read_bytes()

    def broken(state: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        run.save(path)
    assert path.read_bytes() == before


def test_signals_ask_for_a_stop_and_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_rate_rises_stays_and_falls() -> None:
    pace = Pace(updates=100, rate=1.0, warm_up=10, fall=0.2, final=0.05)
    rates = [pace.rate_at(update) for update in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == pytest.approx([1.0] * 72)
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)


def test_a_gradient_is_clipped_to_its_largest_norm() -> None:
    free, clipped = loop(updates=1, clip=1e9), loop(updates=1, clip=1e-3)
    free.run()
    clipped.run()
    moments = [
        torch.cat([state["exp_avg"].flatten() for state in run.optimiser.state.values()]).norm() / 0.1
        for run in (free, clipped)
    ]
    assert moments[1] == pytest.approx(1e-3, rel=1e-2)
    assert moments[0] > 10 * moments[1]


def test_averaged_weights_lag_behind(reference: Loop[nn.Module]) -> None:
    start = list(network().parameters())
    for first, slow, last in zip(start, reference.average.parameters(), reference.net.parameters(), strict=True):
        assert 0 < (slow - first).norm() < (last - first).norm()


def test_a_failing_micro_batch_ends_the_run() -> None:
    class Broken(Noisy):
        def loss(self, net: nn.Module, update: int, micro: int) -> tuple[Tensor, dict[str, float]]:
            if (update, micro) == (1, 1):
                raise ArithmeticError("not a number")
            return super().loss(net, update, micro)

    with pytest.raises(ArithmeticError, match="not a number"):
        Loop(network(), Broken(), Pace(3, 1e-2), 2).run()
