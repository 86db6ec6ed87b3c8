"""The metrics by name: what each is, what it needs, and one judge that computes any of them.

A metric whose weights are not there is reported as unavailable with the remedy; it never becomes a number,
and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from enlarger.errors import ModelError, PictureError, SettingsError
from enlarger.evaluation import artefacts, fidelity
from enlarger.evaluation.pixels import Pixels

if TYPE_CHECKING:
    import torch

    from enlarger.evaluation.dists import Dists
    from enlarger.evaluation.lpips import Lpips
    from enlarger.evaluation.niqe import Niqe

Need = Literal["reference", "source", "borders", "seeds", "vgg"]

NEEDS: dict[Need, str] = {
    "reference": "the true picture (HR) beside the result",
    "source": "the input picture (LR) beside the result",
    "borders": "the rows and columns of the tile borders",
    "seeds": "results of at least two seeds",
    "vgg": "a file of VGG16's weights; name it with --vgg FILE",
}


@dataclass(frozen=True)
class Case:
    """One result and what it may be judged by.

    Attributes:
        result: (H, W, 3) uint8 or floats in 0..1.
        reference: the true picture, the same size.
        source: the input, smaller.
        border: pixels left out on each side by PSNR, SSIM and NIQE.
        rows, columns: tile borders, in result pixels.
        others: results of other seeds for the same input.
    """

    result: Pixels
    reference: Pixels | None = None
    source: Pixels | None = None
    border: int = 0
    rows: Sequence[int] = ()
    columns: Sequence[int] = ()
    others: Sequence[Pixels] = ()

    @property
    def true(self) -> Pixels:
        """The reference.

        Raises:
            PictureError: there is none.
        """
        if self.reference is None:
            raise PictureError("no reference picture for this result", "missing")
        return self.reference

    @property
    def small(self) -> Pixels:
        """The input.

        Raises:
            PictureError: there is none.
        """
        if self.source is None:
            raise PictureError("no input picture for this result", "missing")
        return self.source


@dataclass
class Networks:
    """The learned parts, each made when it is first asked for.

    Attributes:
        vgg: files that together hold VGG16.
    """

    vgg: tuple[Path, ...] = ()

    @cached_property
    def lpips_alex(self) -> Lpips:
        """LPIPS with the AlexNet that ships with Enlarger."""
        from enlarger.evaluation import lpips, parameters

        return lpips.Lpips("alex", parameters.shipped("alexnet_features"), parameters.shipped("lpips_heads"))

    @cached_property
    def lpips_vgg(self) -> Lpips:
        """LPIPS with the user's VGG16."""
        from enlarger.evaluation import lpips, parameters

        return lpips.Lpips("vgg", self.vgg_weights, parameters.shipped("lpips_heads"))

    @cached_property
    def dists(self) -> Dists:
        """DISTS with the user's VGG16."""
        from enlarger.evaluation import dists, parameters

        return dists.Dists(self.vgg_weights, parameters.shipped("dists_alpha_beta"))

    @cached_property
    def niqe(self) -> Niqe:
        """NIQE with the pristine model that ships with Enlarger."""
        from enlarger.evaluation import niqe, parameters

        model = parameters.shipped("niqe_pristine")
        return niqe.Niqe(model["mean"].numpy(), model["covariance"].numpy())

    @cached_property
    def vgg_weights(self) -> dict[str, torch.Tensor]:
        """VGG16's convolutions.

        Raises:
            ModelError: no file was named, or what was named does not hold them.
        """
        from enlarger.evaluation import parameters

        if not self.vgg:
            raise ModelError(f"needs VGG16, which does not ship with Enlarger: {parameters.VGG_REMEDY}")
        return parameters.open_vgg(self.vgg)


@dataclass(frozen=True)
class Metric:
    """One number about a result.

    Attributes:
        name: as it is asked for and reported.
        title: as tables head it.
        definition: exactly what is computed.
        range: smallest and largest value.
        better: "higher", "lower", or "" where neither is better.
        source: paper and equation, or where the definition comes from.
        needs: what must be there beside the result.
        measure: the computation.
    """

    name: str
    title: str
    definition: str
    range: str
    better: Literal["higher", "lower", ""]
    source: str
    needs: tuple[Need, ...]
    measure: Callable[[Case, Networks], float] = field(repr=False)


_SSIM_SOURCE = "Wang et al. 2004, Image Quality Assessment: From Error Visibility to Structural Similarity, eq. 13"
_LPIPS_SOURCE = "Zhang et al. 2018, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, eq. 1"
_LPIPS_DEFINITION = (
    "version 0.1: {net} features of the whole RGB picture (no border crop) after each {where}, unit length over "
    "channels, squared difference weighted by the authors' linear heads, mean over the map, sum over five layers"
)

_ALL = (
    Metric(
        "psnr-y",
        "PSNR-Y dB",
        "10 log10(255^2 / mean squared error) of unrounded BT.601 studio luma of the byte pictures without the border",
        "0..100 (equal pictures)",
        "higher",
        "definition; the protocol of every classic x4 table",
        ("reference",),
        lambda case, _: fidelity.psnr(case.result, case.true, border=case.border),
    ),
    Metric(
        "psnr-rgb",
        "PSNR-RGB dB",
        "10 log10(255^2 / mean squared error) over all channels of the byte pictures without the border; "
        "1.3 to 1.5 dB below PSNR-Y",
        "0..100 (equal pictures)",
        "higher",
        "definition",
        ("reference",),
        lambda case, _: fidelity.psnr(case.result, case.true, on_luma=False, border=case.border),
    ),
    Metric(
        "ssim-y",
        "SSIM-Y",
        "structural similarity of BT.601 luma without the border: Gaussian window 11x11, sigma 1.5, K1 0.01, K2 0.03, "
        "peak 255, windows wholly inside, mean over the map",
        "-1..1",
        "higher",
        _SSIM_SOURCE,
        ("reference",),
        lambda case, _: fidelity.ssim(case.result, case.true, border=case.border),
    ),
    Metric(
        "ssim-rgb",
        "SSIM-RGB",
        "as ssim-y, on R, G and B each, mean of the three",
        "-1..1",
        "higher",
        _SSIM_SOURCE,
        ("reference",),
        lambda case, _: fidelity.ssim(case.result, case.true, on_luma=False, border=case.border),
    ),
    Metric(
        "lpips-alex",
        "LPIPS-Alex",
        _LPIPS_DEFINITION.format(net="AlexNet", where="of its five convolutions"),
        "0..about 1",
        "lower",
        _LPIPS_SOURCE,
        ("reference",),
        lambda case, networks: networks.lpips_alex(case.result, case.true),
    ),
    Metric(
        "lpips-vgg",
        "LPIPS-VGG",
        _LPIPS_DEFINITION.format(net="VGG16", where="stage (relu1_2 to relu5_3)"),
        "0..about 1",
        "lower",
        _LPIPS_SOURCE,
        ("reference", "vgg"),
        lambda case, networks: networks.lpips_vgg(case.result, case.true),
    ),
    Metric(
        "dists",
        "DISTS",
        "1 - weighted texture and structure similarity of the picture and VGG16's five stages with L2 pooling, whole "
        "RGB picture at its own size",
        "0..about 1",
        "lower",
        "Ding et al. 2020, Image Quality Assessment: Unifying Structure and Texture Similarity, eqs. 5 to 8",
        ("reference", "vgg"),
        lambda case, networks: networks.dists(case.result, case.true),
    ),
    Metric(
        "niqe",
        "NIQE",
        "Mahalanobis-like distance of the natural-scene statistics of 96x96 blocks of rounded BT.601 luma without the "
        "border from those of pristine photographs; no reference",
        "0.. (photographs 2 to 5)",
        "lower",
        "Mittal et al. 2013, Making a Completely Blind Image Quality Analyzer, eq. 10, with the authors' constants",
        (),
        lambda case, networks: networks.niqe(case.result, case.border),
    ),
    Metric(
        "consistency",
        "LR-PSNR dB",
        "PSNR-Y, no border crop, of the result made small by MATLAB's antialiased bicubic, rounded, against the input",
        "0..100 (equal pictures)",
        "higher",
        "Lugmayr et al. 2020, SRFlow, section 5 (LR-PSNR), here on luma",
        ("source",),
        lambda case, _: fidelity.consistency(case.result, case.small),
    ),
    Metric(
        "colour-shift",
        "colour shift",
        "largest difference between the mean of a channel of the result and of the input, levels of 255",
        "0..255",
        "lower",
        "this project",
        ("source",),
        lambda case, _: fidelity.colour_shift(case.result, case.small),
    ),
    Metric(
        "block-shift",
        "block shift",
        "mean absolute difference of the colour of blocks of 8x8 input pixels, result made small, levels of 255",
        "0..255",
        "lower",
        "this project",
        ("source",),
        lambda case, _: fidelity.block_shift(case.result, case.small),
    ),
    Metric(
        "seam",
        "seam score",
        "bend of the picture across tile borders over the bend beside them, signed mean over 64 pixels along the "
        "border, median along it; 1 = no seam",
        "0..",
        "lower",
        "this project",
        ("borders",),
        lambda case, _: artefacts.seam_score(case.result, case.rows, case.columns),
    ),
    Metric(
        "grid",
        "grid score",
        "mean luma step across columns at multiples of 4 over that at the others, the same for rows, mean of both; "
        "1 = no grid",
        "0..",
        "lower",
        "this project",
        (),
        lambda case, _: artefacts.grid_score(case.result),
    ),
    Metric(
        "deviation",
        "deviation",
        "standard deviation of a pixel over results of different seeds (unbiased), mean over pixels and channels, "
        "levels of 255; 0 = the seed changes nothing",
        "0..255",
        "",
        "this project",
        ("seeds",),
        lambda case, _: fidelity.deviation([case.result, *case.others]),
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}

ALIASES = {
    "lpips": "lpips-alex",
    "psnr": "psnr-y",
    "ssim": "ssim-y",
    "lr-psnr": "consistency",
    "color-shift": "colour-shift",
}


def find(name: str) -> Metric:
    """The metric of that name; `_` and capitals are accepted, as are `lpips`, `psnr` and `ssim` for the usual ones.

    Raises:
        SettingsError: there is none; the message names the nearest.
    """
    key = name.strip().lower().replace("_", "-")
    key = ALIASES.get(key, key)
    if key in METRICS:
        return METRICS[key]
    near = get_close_matches(key, [*METRICS, *ALIASES], 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}"
    raise SettingsError(f"unknown metric {name!r}; {hint}")


class Judge:
    """Computes a chosen set of metrics for one case after another."""

    def __init__(self, names: Iterable[str], vgg: Sequence[Path] = ()) -> None:
        """Look the metrics up; networks are opened at the first case.

        Args:
            names: as `find` takes them; the report uses these spellings.
            vgg: files that together hold VGG16.

        Raises:
            SettingsError: an unknown metric, or none.
        """
        self.metrics = {name: find(name) for name in names}
        if not self.metrics:
            raise SettingsError(f"no metric asked for; there are {', '.join(METRICS)}")
        self.networks = Networks(tuple(vgg))

    def unavailable(self, has: Iterable[Need] = ("reference", "source")) -> dict[str, str]:
        """The metrics that cannot be computed, each with the reason and the remedy.

        Args:
            has: what the cases will bring.
        """
        brought = set(has)
        missing = {}
        for name, metric in self.metrics.items():
            lacking = [need for need in metric.needs if need != "vgg" and need not in brought]
            if lacking:
                missing[name] = "needs " + " and ".join(NEEDS[need] for need in lacking)
            elif "vgg" in metric.needs:
                try:
                    _ = self.networks.vgg_weights
                except ModelError as error:
                    missing[name] = str(error)
        return missing

    def judge(self, case: Case, without: Iterable[str] = ()) -> dict[str, float]:
        """The value of every metric but those in `without`.

        Raises:
            PictureError: a picture that cannot be measured, or two sizes where one is needed.
            ModelError: a metric whose weights are missing.
        """
        skipped = set(without)
        return {
            name: metric.measure(case, self.networks) for name, metric in self.metrics.items() if name not in skipped
        }
