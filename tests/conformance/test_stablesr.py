"""The script of StableSR's numbers: all agree, `Upscaler` and its loop made them, and a wrong one is found."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import enlarger
from enlarger.sampling import loop
from tests.conformance import scripts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script():
    with scripts.opened("stablesr") as module:
        yield module


def test_every_recorded_array_agrees(stablesr, script, capsys):
    code = script.main([str(stablesr)])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "249 of 249 cases agree", said
    assert code == 0


@pytest.mark.parametrize("group", ["sample", "canvas", "split", "ddim", "face", "pipeline"])
def test_what_is_sampled_or_cut_comes_out_of_upscaler_and_its_loop(stablesr, script, monkeypatch, group):
    """Calls of `Upscaler`, as many as of the loop, make these arrays; without the loop there are none."""
    calls: list[str] = []
    denoise, called = loop.denoise, enlarger.Upscaler.__call__

    def listened(*arguments, **options):
        calls.append("denoise")
        return denoise(*arguments, **options)

    def listened_upscaler(*arguments, **options):
        calls.append("Upscaler")
        return called(*arguments, **options)

    def broken(*_, **__):
        raise RuntimeError("no loop")

    for place in places_of(denoise):
        monkeypatch.setattr(place, "denoise", listened)
    monkeypatch.setattr(enlarger.Upscaler, "__call__", listened_upscaler)
    folder = script.Folder(stablesr)
    folder.cases = [case for case in folder.cases if case.startswith(f"{group}/")]
    groups = [each for each in script.GROUPS if each.__name__ == group]
    assert script.check(folder, groups, say=lambda line: None) == (len(folder.cases), len(folder.cases))
    assert calls == ["Upscaler", "denoise"] * (len(calls) // 2)
    assert calls
    for place in places_of(listened):
        monkeypatch.setattr(place, "denoise", broken)
    said: list[str] = []
    agreed, wanted = script.check(folder, groups, say=said.append)
    assert agreed < wanted
    assert any("no loop" in line for line in said)


def places_of(function):
    """The modules of the package in which a function is known as `denoise`."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("enlarger.") and getattr(module, "denoise", None) is function
    ]


def test_a_wrong_number_is_found(stablesr, script, tmp_path, capsys):
    for file in stablesr.iterdir():
        (tmp_path / file.name).symlink_to(file)
    recorded = dict(np.load(stablesr / "text.npz"))
    name = next(name for name in sorted(recorded) if recorded[name].dtype.kind == "f")
    recorded[name].flat[0] += 0.1
    (tmp_path / "text.npz").unlink()
    np.savez(tmp_path / "text.npz", **recorded)
    assert script.main([str(tmp_path), "--only", "text"]) == 1
    assert f"DIFFERS text/{name}" in capsys.readouterr().out
