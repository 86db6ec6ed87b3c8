"""What all tests share."""

from pathlib import Path

import pytest
from hypothesis import settings

# Other work on the machine must not fail a test.
settings.register_profile("enlarger", deadline=None)
settings.load_profile("enlarger")

FIXTURES = Path(__file__).parents[1].parent / "shared" / "fixtures"


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Tiny random models of real structure, with what diffusers made of them."""
    folder = FIXTURES / "tiny"
    if not folder.is_dir():
        pytest.skip("the tiny models are not beside the repository (../shared/fixtures/tiny)")
    return folder


@pytest.fixture(scope="session")
def stablesr() -> Path:
    """A tiny StableSR under the published names, with numbers of the original."""
    folder = FIXTURES / "stablesr"
    if not folder.is_dir():
        pytest.skip("the recorded StableSR is not beside the repository (../shared/fixtures/stablesr)")
    return folder
