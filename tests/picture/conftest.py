"""Fixtures for the tests of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.picture.support import require_corpora


@pytest.fixture
def corpora() -> Path:
    return require_corpora()


@pytest.fixture
def good(corpora: Path) -> Path:
    return corpora / "good"
