"""Guidance on the canvas."""

import pytest
import torch

from enlarger.sampling.guidance import guide


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 4, 12, 9, generator=generator) * scale + 0.3 for scale in (1.0, 0.7))


def test_without_an_unconditional_output_nothing_is_touched(outputs):
    assert guide(outputs[0], None, 7.5, 0.7) is outputs[0]


@pytest.mark.parametrize(("scale", "which"), [(1.0, 0), (0.0, 1)])
def test_scale_one_is_the_prompt_alone_and_zero_none(outputs, scale, which):
    torch.testing.assert_close(guide(*outputs, scale), outputs[which])


def test_guidance_moves_away_from_the_unconditional_output(outputs):
    torch.testing.assert_close(guide(*outputs, 7.5), outputs[1] + 7.5 * (outputs[0] - outputs[1]))


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescale_is_that_of_diffusers(outputs, rescale):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    theirs = rescale_noise_cfg(outputs[1] + 7.5 * (outputs[0] - outputs[1]), outputs[0], rescale)
    torch.testing.assert_close(guide(*outputs, 7.5, rescale), theirs, rtol=1e-5, atol=1e-6)


def test_a_full_rescale_gives_every_picture_the_deviation_of_its_conditional_output(outputs):
    guided = guide(*outputs, 7.5, 1.0)
    torch.testing.assert_close(guided.std(dim=(1, 2, 3)), outputs[0].std(dim=(1, 2, 3)))


def test_a_constant_output_stays_finite():
    flat = torch.full((1, 4, 8, 8), 0.5)
    torch.testing.assert_close(guide(flat, flat / 2, 3.0, 0.7), torch.full((1, 4, 8, 8), 1.0))
