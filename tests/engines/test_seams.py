"""The seam meter on every engine: none at the default tiles, and where blending is switched off the meter sees one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import enlarger
from enlarger.canvas import blend
from enlarger.engines.catalog import listings
from enlarger.engines.engine import Decoded, Prediction
from enlarger.evaluation.artefacts import seam_score
from enlarger.size import Size
from tests.engines import tiny, toy
from tests.engines.test_gan import SHAPES, engine, network
from tests.sampling.test_loop import hard

LATENT = {"x4": tiny.x4, "img2img": tiny.sd, "controlnet": tiny.with_control}
BLENDED = (*LATENT, "stablesr")
STREAMED = ("gan", "pocket", "interpolate")

CELLS = Size(192, 320)
"""A canvas of several default tiles for each engine."""


def test_these_are_all_engines():
    assert {*BLENDED, *STREAMED} == set(listings())


@pytest.fixture
def upscaler(request, tmp_path):
    name = request.param
    if name == "stablesr":
        file = str(request.getfixturevalue("stablesr") / "model.safetensors")
        return enlarger.Upscaler(name, file, device="cpu", max_memory="64GB")
    parts = LATENT[name](tmp_path)
    kind = "v_prediction" if name == "x4" else "epsilon"
    return enlarger.Upscaler(name, components={**parts, "scheduler": toy.config(kind)}, max_memory="64GB")


def tile_s_mean(noisy, moment, kind):
    """As a network whose norms see the whole of a tile: its clean value moves with the mean of what it sees."""
    alpha, beta = toy.levels(float(moment.timestep))
    spread = 0.1**2
    centre = 0.5 * torch.tanh(20 * noisy.mean(dim=(2, 3), keepdim=True)).expand_as(noisy)
    clean = (alpha * spread * noisy + beta**2 * centre) / (alpha**2 * spread + beta**2)
    epsilon = (noisy - alpha * clean) / beta
    return Prediction(epsilon if kind == "epsilon" else alpha * epsilon - beta * clean)


@pytest.mark.parametrize("upscaler", BLENDED, indirect=True)
def test_blended_tiles_leave_no_seam(upscaler, monkeypatch):
    name, up = upscaler.facts.name, upscaler.engine
    kind = "v_prediction" if name == "x4" else "epsilon"
    latents = []

    def listen(latent, conditioning, progress=None):
        latents.append(latent)
        grid = up.facts.grid
        return Decoded(torch.zeros(1, 3, 1, 1).expand(1, 3, grid * CELLS.height, grid * CELLS.width))

    monkeypatch.setattr(up, "predict", lambda noisy, moment, conditioning: tile_s_mean(noisy, moment, kind))
    monkeypatch.setattr(up, "decode_canvas", listen)
    if name != "x4":  # whose picture is not encoded
        monkeypatch.setattr(up, "encode", lambda *_: (torch.zeros(1, 4, *CELLS), ()))
    settings = {"steps": 5, "consistency": 0.0, "batch": 8, "scale": 4.0 if name == "x4" else 1.0}
    settings |= {"color_fix": "none", "guidance_scale": 1.0}
    settings |= {
        "controlnet": {"strength": 1.0, "control_scale": 0.0},
        "img2img": {"strength": 1.0},
        "stablesr": {"tile": 512, "overlap": 256},  # the published models' default; this small one's is smaller
    }.get(name, {})
    side = 1 if name == "x4" else up.facts.grid
    source = np.full((side * CELLS.height, side * CELLS.width, 3), 0.5, np.float32)
    upscaler(source, **settings)
    monkeypatch.setattr(blend, "axis_weights", hard)
    upscaler(source, **settings)
    checked = upscaler.settings(**settings)
    plan = upscaler.plan(Size(*source.shape[:2]), checked)
    tiles = plan.tiling(up, plan.canvas.passes[0], checked).plan(CELLS)
    assert len(tiles) > 4
    blended, cut = (seams(latent, tiles) for latent in latents)
    assert blended <= 1.05
    assert cut > 1.5


def seams(latent, tiles):
    """The meter at both edges of every overlap, and in its middle, where hard tiles meet; the larger."""
    shown = (0.5 + 0.25 * latent[0, :3].permute(1, 2, 0)).clamp(0, 1).double().numpy()
    lines = []
    for axis in (0, 1):
        starts = sorted({tile[axis] for tile in tiles})
        side = tiles[0].size[axis]
        edges = {*starts[1:], *(start + side for start in starts[:-1])}
        middles = [later + (earlier + side - later) // 2 for earlier, later in pairwise(starts)]
        lines.append((sorted(edges), middles))
    return max(seam_score(shown, lines[0][place], lines[1][place]) for place in (0, 1))


@pytest.mark.parametrize("name", STREAMED)
def test_tiles_with_halos_leave_no_seam(name):
    """The same picture, so the same score where a tile begins as everywhere; made wrong there, the meter sees it."""
    up = enlarger.Upscaler(engine(network(SHAPES["compact"])) if name == "gan" else name)
    y, x = np.mgrid[:120, :150] / 60.0
    texture = 0.05 * np.random.default_rng(0).standard_normal((120, 150, 3))
    source = (0.5 + 0.2 * np.stack([np.sin(3 * y), np.cos(2 * x), np.sin(x + y)], 2) + texture).clip(0, 1)
    whole, tiled = (up(source.astype(np.float32), scale=4, tile=tile).pixels for tile in (4096, 128))
    borders = range(128, 480, 128)
    assert np.abs(whole - tiled).max() <= 1e-5
    scores = [seam_score(made, borders, borders) for made in (whole, tiled)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    toned = tiled.copy()
    toned[:, 128:256] += 0.1
    assert seam_score(toned.clip(0, 1), borders, borders) > 1.5
