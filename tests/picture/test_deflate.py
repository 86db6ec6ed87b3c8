"""Packing on several cores: one stream, the same on any number, not longer than it need be."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enlarger.picture.deflate import in_order, stream
from tests.picture.support import waves


@given(st.lists(st.binary(max_size=3000) | st.integers(0, 60000).map(bytes), max_size=6), st.integers(0, 9))
def test_any_pieces_unpack_to_themselves(pieces: list[bytes], level: int) -> None:
    assert zlib.decompress(b"".join(stream(pieces, level))) == b"".join(pieces)


def rows() -> list[bytes]:
    samples = (waves(800, 900) * 255).astype(np.uint8)
    samples += np.random.default_rng(0).integers(0, 3, samples.shape, dtype=np.uint8)
    return [samples[start : start + 100].tobytes() for start in range(0, 800, 100)]


def test_the_number_of_cores_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for cores in (1, 2, 7, None):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        made.append(b"".join(stream(rows())))
    assert len(set(made)) == 1


def test_pieces_cost_hardly_any_length() -> None:
    whole = zlib.compressobj(4, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
    at_once = len(whole.compress(b"".join(rows())) + whole.flush())
    assert len(b"".join(stream(rows()))) < 1.01 * at_once
    # the dictionary matters: a piece that repeats the one before costs next to nothing
    noise = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    assert len(b"".join(stream([noise, noise]))) < 21_000


def test_results_come_in_order_and_few_are_held() -> None:
    alive = 0
    most = 0
    lock = threading.Lock()

    def items() -> Iterator[int]:
        nonlocal alive, most
        for number in range(100):
            with lock:
                alive += 1
                most = max(most, alive)
            yield number

    got = []
    for result in in_order(lambda number: number * number, items()):
        with lock:
            alive -= 1
        got.append(result)
    assert got == [number * number for number in range(100)]
    assert most <= 2 * 8 + 1


def test_an_error_of_a_thread_is_an_error_of_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda number: 1 // (5 - number), range(100)))
