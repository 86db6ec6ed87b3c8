"""The conformance scripts as modules: they are commands, and one of them bears the name of a library."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def opened(name: str) -> Iterator[ModuleType]:
    """A script of this folder, without its changes of where Python looks for modules."""
    own = f"{name}_conformance_script"
    spec = importlib.util.spec_from_file_location(own, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    try:
        yield module
    finally:
        del sys.modules[own]
