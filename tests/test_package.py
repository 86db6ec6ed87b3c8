"""The package: light to import, typed, without torchvision, layered; the wheel alone passes the first command."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest

import enlarger

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        [str(word) for word in words], capture_output=True, text=True, timeout=600, check=False, **options
    )
    return done


def test_import_enlarger_is_light() -> None:
    heavy = ["torch", "numpy", "PIL", "diffusers", "transformers", "tifffile", "tqdm", "safetensors"]
    script = f"import enlarger, sys; print(*({set(heavy)!r} & set(sys.modules)))"
    assert run(sys.executable, "-c", script).stdout == "\n"


def test_everything_public_is_there_and_known_to_dir() -> None:
    assert set(enlarger.__all__) <= set(dir(enlarger))
    for name in enlarger.__all__:
        assert getattr(enlarger, name) is not None
    with pytest.raises(AttributeError, match="wibble"):
        enlarger.wibble  # noqa: B018


def test_the_version_is_said_once() -> None:
    assert metadata("enlarger")["Version"] == enlarger.__version__
    assert f"## {enlarger.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_torchvision_is_nowhere() -> None:
    wanted = [*(requires("enlarger") or []), *(ROOT / "constraints.txt").read_text().splitlines()]
    assert not [line for line in wanted if re.match(r"torchvision\b", line)]
    imports = re.compile(r"^\s*(import|from)\s+torchvision\b|import_module\([\"']torchvision", re.M)
    sources = [path for folder in ("src", "tests", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 40
    assert not [str(path) for path in sources if imports.search(path.read_text())]


def test_our_engines_need_neither_torchvision_nor_diffusers() -> None:
    """Where importing them fails, pocket and interpolate still work."""
    script = """
import sys
for name in ("torchvision", "diffusers", "transformers", "accelerate", "huggingface_hub"):
    sys.modules[name] = None
import numpy as np, enlarger
for engine in ("pocket", "interpolate"):
    print(enlarger.upscale(np.zeros((8, 8, 3), np.uint8), engine=engine).size)
"""
    done = run(sys.executable, "-c", script)
    assert done.stdout.split() == ["32x32", "32x32"], done.stderr


def test_a_core_installation_brings_what_the_core_needs_and_no_more() -> None:
    core = {re.split(r"[<>=!~ ;\[]", line)[0] for line in PROJECT["project"]["dependencies"]}
    assert core == {"torch", "numpy", "pillow", "safetensors", "tifffile", "platformdirs", "tqdm"}
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert pins["torch"] == "2.13.0"
    assert core <= set(pins)


def test_no_path_of_the_machine_it_was_made_on_is_in_the_product() -> None:
    """Nothing but tests may look beside the repository, and they skip where nothing is there."""
    listed = run("git", "ls-files", cwd=ROOT)
    if listed.returncode:
        pytest.skip("needs the git repository")
    foreign = re.compile(r"/work/|/opt/dev-env|/root/|\.\./shared")
    texts = [
        name for name in listed.stdout.splitlines() if re.search(r"\.(py|toml|md|txt|json|cfg)$|^scripts/|^\.ci/", name)
    ]
    product = [name for name in texts if not name.startswith("tests/") and (ROOT / name).exists()]
    assert [name for name in product if foreign.search((ROOT / name).read_text())] == []


def test_licence_and_notice_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert metadata("enlarger")["License-Expression"] == "Apache-2.0"
    assert "pocket" in (ROOT / "NOTICE").read_text()


def test_the_layers_hold(tmp_path: Path) -> None:
    pytest.importorskip("importlinter", reason="needs import-linter")
    done = run(sys.executable, ROOT / "scripts/layers.py", cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "contract"),
    [
        ("networks/wrong.py", "import enlarger.canvas.tiles\n", "Higher layers"),
        ("utils.py", "", "Higher layers"),
        ("engines/wrong.py", "", "Engines know the seam"),
        ("canvas/tiles.py", "def f():\n    import torch\n", "needs no torch"),
    ],
)
def test_a_broken_layer_is_seen(tmp_path: Path, file: str, text: str, contract: str) -> None:
    pytest.importorskip("importlinter", reason="needs import-linter")
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.pyc")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "src/enlarger" / file
    path.write_text((path.read_text() if path.exists() else "") + text)
    done = run(sys.executable, ROOT / "scripts/layers.py", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(rf"{contract}.* BROKEN", done.stdout), done.stdout


BLOCKED = """
import socket


def refuse(*words, **options):
    raise OSError("the network is out of reach in this test")


class Socket(socket.socket):
    __init__ = refuse


socket.socket = Socket
socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    pytest.importorskip("hatchling", reason="needs hatchling, of the extra dev")
    folder = tmp_path_factory.mktemp("wheel")
    words = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    done = run(sys.executable, *words)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_code_weights_and_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"enlarger", f"enlarger-{enlarger.__version__}.dist-info"}
    assert {"enlarger/py.typed", "enlarger/checkpoints/shipped/pocket.safetensors"} <= names
    data = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/enlarger/evaluation/data").glob("*.*")}
    assert data <= names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert wheel.stat().st_size < 40e6
    assert zipfile.ZipFile(wheel).getinfo("enlarger/checkpoints/shipped/pocket.safetensors").file_size <= 16 * 2**20


@pytest.mark.slow
def test_the_wheel_alone_passes_the_first_command_with_no_network(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment: only the dependencies of this one are in reach, not the repository, not a socket."""
    from PIL import Image

    venv = tmp_path / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", venv).returncode == 0
    python = venv / "bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    done = run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(BLOCKED)
    photo = tmp_path / "kitten.jpg"
    photo.write_bytes((ROOT / "examples/kitten.jpg").read_bytes())

    clean = {"PATH": str(venv / "bin"), "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    where = run(python, "-c", "import enlarger; print(enlarger.__file__)", cwd=tmp_path, env=clean)
    assert where.stdout.startswith(str(site)), where.stderr
    blocked = run(python, "-c", "import socket; socket.socket()", cwd=tmp_path, env=clean)
    assert "out of reach" in blocked.stderr
    done = run(venv / "bin/enlarger", "upscale", "kitten.jpg", cwd=tmp_path, env=clean)
    assert done.returncode == 0, done.stderr
    assert "kitten_4x.jpg" in done.stderr
    with Image.open(tmp_path / "kitten_4x.jpg") as result:
        assert result.size == (1920, 1296)
