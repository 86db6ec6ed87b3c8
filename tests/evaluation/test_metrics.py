from __future__ import annotations

import pytest

from enlarger.errors import PictureError, SettingsError
from enlarger.evaluation.metrics import METRICS, NEEDS, Case, Judge, find


def test_every_metric_says_what_it_is():
    assert set(METRICS) >= {
        *("psnr-y", "psnr-rgb", "ssim-y", "ssim-rgb", "lpips-alex", "lpips-vgg", "dists", "niqe"),
        *("consistency", "colour-shift", "seam", "grid", "deviation"),
    }
    for name, metric in METRICS.items():
        assert metric.name == name
        assert len(metric.definition) > 40
        assert metric.range
        assert metric.source
        assert metric.better in ("higher", "lower", "")
        assert set(metric.needs) <= set(NEEDS)


@pytest.mark.parametrize(("spelled", "name"), [("LPIPS", "lpips-alex"), ("psnr_y", "psnr-y"), (" ssim ", "ssim-y")])
def test_common_spellings_are_understood(spelled, name):
    assert find(spelled).name == name


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(SettingsError, match="did you mean lpips-alex"):
        find("lpips-alx")
    with pytest.raises(SettingsError, match="there are psnr-y, "):
        find("fid")
    with pytest.raises(SettingsError, match="no metric"):
        Judge([])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "vgg" in metric.needs else [])
        for name, metric in METRICS.items()
        if metric.better and name != "niqe"
    ],
)
def test_the_stated_direction_is_that_of_the_numbers(name, result, reference, pictures, request):
    """A worse picture scores worse. (NIQE needs a photograph for that: test_perceptual.py.)"""
    truth, worse = pictures
    vgg = request.getfixturevalue("vgg_files") if "vgg" in METRICS[name].needs else ()
    from enlarger.picture.bicubic import shrink

    good = worse(truth(80, 120))
    bad = good.copy()
    bad[:, 40:] = (bad[:, 40:] // 2) + 100
    bad[::4] //= 2
    case = {"reference": truth(80, 120), "source": shrink(good, 4), "columns": (40,)}
    judge = Judge([name], vgg)
    better, poorer = (judge.judge(Case(picture, **case))[name] for picture in (good, bad))
    assert (better > poorer) if METRICS[name].better == "higher" else (better < poorer)


def test_what_a_case_does_not_bring_is_named_before_the_run(result, reference):
    judge = Judge(["consistency", "seam", "deviation", "niqe"])
    missing = judge.unavailable(["reference"])
    assert set(missing) == {"consistency", "seam", "deviation"}
    assert "input picture" in missing["consistency"]
    assert "tile borders" in missing["seam"]
    with pytest.raises(PictureError, match="no input picture"):
        judge.judge(Case(result, reference))


def test_the_report_uses_the_names_that_were_asked_for(result, reference):
    assert list(Judge(["ssim_y", "psnr"]).judge(Case(result, reference))) == ["ssim_y", "psnr"]
