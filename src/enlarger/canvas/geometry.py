"""Where a picture lands: the result's exact size, the passes that reach it, the padding.

Everything here is integers and needs no torch. It is decided once, before any work; all later
steps read it and none computes a size again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from enlarger.errors import SettingsError
from enlarger.size import MAX_SCALE, Size


@dataclass(frozen=True)
class Pass:
    """One run of an engine at its own factor.

    Attributes:
        source: Size of the picture that goes in, in pixels.
        padded: `source` rounded up to the engine's stride; the surplus lies at the bottom and right.
        factor: Output pixels per input pixel.
        target: Size of the run's result, which places in a picture are measured in; None where it is `native`.
    """

    source: Size
    padded: Size
    factor: int
    target: Size | None = field(default=None, compare=False)

    @property
    def native(self) -> Size:
        """Size of what comes out once the padding is cut, in pixels."""
        return self.source.times(self.factor)


@dataclass(frozen=True)
class Canvas:
    """The way from the input's size to the exact size asked for.

    Attributes:
        source: The input's size in pixels.
        target: The result's size in pixels, exactly as asked.
        passes: The engine's runs, one after the other; at least one.
    """

    source: Size
    target: Size
    passes: tuple[Pass, ...]

    @property
    def native(self) -> Size:
        """What the last pass gives; it is resized once to `target` if the two differ."""
        return self.passes[-1].native

    @property
    def scale(self) -> float:
        """The larger of the two sides' enlargements."""
        return max(self.target.height / self.source.height, self.target.width / self.source.width)


def target_size(
    source: Size,
    *,
    scale: float | None = None,
    size: Size | None = None,
    longest: int | None = None,
    megapixels: float | None = None,
) -> Size:
    """The exact size of the result for the one wish that is given.

    Args:
        source: The input's size in pixels.
        scale: Output pixels per input pixel, 1 to 16; sides are rounded to the nearest pixel.
        size: The result's size itself.
        longest: Pixels of the result's longer side; the other follows the aspect ratio.
        megapixels: Million pixels of the result, as near as whole sides allow.

    Returns:
        The target size in pixels; never smaller than the source on either side.

    Raises:
        SettingsError: Not exactly one wish, or one that is smaller than the input or more than 16 times larger.
    """
    wishes = {"scale": scale, "size": size, "longest": longest, "megapixels": megapixels}
    given = [name for name, value in wishes.items() if value is not None]
    if len(given) != 1:
        raise SettingsError(f"give one of scale, size, longest and megapixels, not {' and '.join(given) or 'none'}")
    if size is not None:
        target = Size(*size)
    elif scale is not None:
        target = _scaled(source, scale)
    elif longest is not None:
        target = _scaled(source, longest / max(source))
    else:
        assert megapixels is not None
        target = _scaled(source, math.sqrt(megapixels * 1e6 / source.area))
    for side, wanted, there in zip(("height", "width"), target, source, strict=True):
        if wanted < there:
            raise SettingsError(
                f"{given[0]} asks for {target}, but the picture is {source} already: "
                f"its {side} would become smaller; Enlarger only enlarges"
            )
        if wanted > MAX_SCALE * there:
            raise SettingsError(
                f"{given[0]} asks for {target}, {wanted / there:.4g} times the {side} of {source}; "
                f"at most {MAX_SCALE} times is possible ({source.times(MAX_SCALE)})"
            )
    return target


def _scaled(source: Size, scale: float) -> Size:
    return Size(*(max(1, math.floor(side * scale + 0.5)) for side in source))


def _between(source: Size, target: Size, share: float) -> Size:
    """The size after a share, 0 to 1, of the way; exactly the target at 1."""
    sides = (round(there * (wanted / there) ** share) for there, wanted in zip(source, target, strict=True))
    return target if share == 1 else Size(*sides)


def place(
    source: Size, target: Size, *, factor: int, stride: int = 1, at_target: bool = False, rounds: int = 1
) -> Canvas:
    """Put a picture on its canvas.

    Args:
        source: The input's size in pixels.
        target: The result's size in pixels.
        factor: What the engine enlarges by in one pass.
        stride: Input pixels that a pass's sides must be a multiple of.
        at_target: The engine works at the target's own size: its source is enlarged to it before the pass.
        rounds: Passes of such an engine, growing from the source's size to the target's by equal ratios.

    Returns:
        As few passes as reach the target; the last one's result is then resized once. An engine of factor 1
        passes once, and the one resize does the rest.
    """
    if at_target:
        sizes = [_between(source, target, number / rounds) for number in range(1, rounds + 1)]
        return Canvas(source, target, tuple(Pass(size, size.padded(stride), 1, target) for size in sizes))
    start = source
    passes = [Pass(start, start.padded(stride), factor)]
    while factor > 1 and any(made < wanted for made, wanted in zip(passes[-1].native, target, strict=True)):
        start = passes[-1].native
        passes.append(Pass(start, start.padded(stride), factor))
    return Canvas(source, target, tuple(passes))
