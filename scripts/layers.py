"""Checks the import rules of pyproject.toml on ./src, wherever that is: what `lint-imports` does, on this tree."""

import sys

sys.path.insert(0, "src")

from importlinter.cli import lint_imports

sys.exit(lint_imports(no_cache=True, no_logo=True))
