"""Schedulers are found by the names that people know."""

import subprocess
import sys

import pytest

from enlarger.errors import SettingsError
from enlarger.sampling import names


@pytest.mark.parametrize(
    ("known", "ours"),
    [
        ("DPM++ 2M Karras", "dpm++2m-karras"),
        ("DPM++ 2M", "dpm++2m"),
        ("Euler a", "euler-a"),
        ("Euler", "euler"),
        ("Heun", "heun"),
        ("DDIM", "ddim"),
        ("PLMS", "pndm"),
        ("UniPC", "unipc"),
        ("LCM", "lcm"),
        ("euler_ancestral", "euler-a"),
        ("dpmpp_2m", "dpm++2m"),
        ("uni_pc", "unipc"),
        ("DDPMScheduler", "ddpm"),
        ("EulerAncestralDiscreteScheduler", "euler-a"),
        ("DPMSolverMultistepScheduler", "dpm++2m"),
    ],
)
def test_names_of_other_tools_are_accepted(known, ours):
    assert names.find(known).name == ours


def test_every_name_finds_itself():
    assert " ".join(names.SCHEDULERS) == "ddim ddpm pndm euler euler-a heun dpm++2m dpm++2m-karras unipc lcm"
    for name in names.SCHEDULERS:
        assert names.find(name).name == name


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("ddimm", "ddim"), ("dpm++2m-karas", "dpm++2m-karras"), ("eular a", "euler-a"), ("DPM++ 2M SDE", "dpm++2m")],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong, near):
    with pytest.raises(SettingsError, match=f"did you mean {near.replace('+', '[+]')}[?]"):
        names.find(wrong)


def test_a_name_like_none_is_refused_with_all_of_them():
    with pytest.raises(SettingsError, match="there are ddim, ddpm, pndm, euler, euler-a, heun, dpm") as caught:
        names.find("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["lcm", "dpm++2m-karras"])
def test_a_spacing_without_effect_is_refused(name):
    with pytest.raises(SettingsError, match="no spacing"):
        names.check_spacing("trailing", names.find(name))


def test_an_unknown_spacing_is_refused_with_the_nearest():
    with pytest.raises(SettingsError, match="did you mean trailing"):
        names.check_spacing("trailling", names.find("ddim"))


def test_an_eta_without_effect_or_out_of_range_is_refused():
    with pytest.raises(SettingsError, match="euler has no eta"):
        names.check_eta(0.5, names.find("euler"))
    with pytest.raises(SettingsError, match="0 to 1"):
        names.check_eta(1.5, names.find("ddim"))
    assert names.check_eta(0.0, names.find("euler")) == 0


def test_names_need_neither_torch_nor_diffusers():
    code = "import sys, enlarger.sampling.names; print('torch' in sys.modules or 'diffusers' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "False"
