"""Height and width: the one pair of numbers that every room of the house shares."""

from __future__ import annotations

from typing import NamedTuple

MAX_SCALE = 16
"""The largest enlargement of either side."""

MAX_SIDE = 1_000_000
"""No format and no memory holds more; beyond it a number was mistyped."""


class Size(NamedTuple):
    """Height and width, always in this order; the unit (pixels, cells) is said by the owner."""

    height: int
    width: int

    @property
    def area(self) -> int:
        """Height times width."""
        return self.height * self.width

    def times(self, factor: int) -> Size:
        """Both sides multiplied."""
        return Size(self.height * factor, self.width * factor)

    def padded(self, multiple: int) -> Size:
        """The smallest size that is not smaller and a multiple of `multiple` on both sides."""
        return Size(-(-self.height // multiple) * multiple, -(-self.width // multiple) * multiple)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"
