"""The one command that writes the tables of numbers, on tiny data."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

from enlarger.picture.bicubic import shrink

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tables.py"


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """The script, with pages of its own to write."""
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("ROOT", "PAGE", "README"):
        monkeypatch.setattr(module, name, tmp_path / {"ROOT": ".", "PAGE": "numbers.md", "README": "README.md"}[name])
    (tmp_path / "README.md").write_text(f"before\n{module.BEGIN}\nold\n{module.END}\nafter\n")
    return module


def test_one_command_writes_the_page_and_the_readmes_table(tables, tmp_path, monkeypatch, pictures, capsys):
    for part, shape in (("HR", None), ("LRx4", 4)):
        folder = tmp_path / "data" / "Set14" / part
        folder.mkdir(parents=True)
        large = pictures[0](48, 64)
        Image.fromarray(shrink(large, 4) if shape else large).save(folder / "a.png")
    monkeypatch.setattr(tables, "OURS", ("interpolate", "interpolate:filter=nearest"))
    words = ["--data", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--protocols", "set5,set14"]
    monkeypatch.setattr(sys, "argv", ["tables.py", *words])
    assert tables.main() == 0
    assert "set5: left out" in capsys.readouterr().err
    page = (tmp_path / "numbers.md").read_text()
    assert "### set14, 1 pictures" in page
    assert str(tmp_path) not in page
    assert "--engines interpolate,interpolate:filter=nearest" in page
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith(f"before\n{tables.BEGIN}\n| engine |")
    assert readme.endswith(f"{tables.END}\nafter\n")
    assert readme.count("| interpolate") == 2
    assert "old" not in readme
    # Every number of README's table stands in the page too.
    table = readme.split(tables.BEGIN)[1].split(tables.END)[0].strip()
    assert table in page


def test_the_readme_has_its_place():
    text = (SCRIPT.parents[1] / "README.md").read_text("utf-8")
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert text.count(module.BEGIN) == text.count(module.END) == 1
    assert text.index(module.BEGIN) < text.index(module.END)
