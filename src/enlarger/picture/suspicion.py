"""Damage that decoders pass over in silence: the scan of a JPEG and the run lengths of a BMP.

libjpeg fills what it cannot decode with grey and only counts a warning that Pillow does not show; Pillow's BMP reader
leaves what lies outside the picture black. A short look at the start of the data tells; the result is a warning, not an
error.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_BLOCKS = (
    2000  # of a JPEG that are looked at: noise breaks a rule within a few, and this takes some hundredths of a second
)
_RUNS = 1 << 20  # of a BMP
# JPEG of 8 bits a sample (ITU T.81, F.1.2): a DC difference has at most 11 bits, an AC value 10.
_DC_BITS, _AC_BITS = 11, 10


class _BrokenError(Exception):
    """A rule of the format is broken."""


class _EndError(Exception):
    """The data end; whether they may is for others to say."""


def jpeg_scan_is_broken(data: bytes) -> bool:
    """Decodes the first blocks of a sequential Huffman JPEG, without making pixels, and says if a rule is broken.

    Progressive and arithmetic files are not judged (False).
    """
    scan = None
    try:
        scan = _Scan(data)
        scan.walk()
    except _BrokenError:
        # With the scan's end in sight the reader looks at padding too, which follows no rule.
        return scan is not None and scan.padding == 0
    except (_EndError, IndexError, struct.error, KeyError, ZeroDivisionError):
        return False
    return False


@dataclass
class _Component:
    across: int
    down: int
    dc: int = 0
    ac: int = 0


class _Scan:
    """The tables of a JPEG and a reader of bits in its first scan."""

    def __init__(self, data: bytes) -> None:
        self.tables: dict[int, list[tuple[int, int]]] = {}
        self.components: dict[int, _Component] = {}
        self.order: list[_Component] = []
        self.restart = 0
        self.data = data
        self.position = self._headers(data)
        self.bits = 0
        self.count = 0
        self.padding = 0

    def _headers(self, data: bytes) -> int:
        position = 2
        while True:
            if data[position] != 0xFF:
                raise _EndError
            marker = data[position + 1]
            if marker == 0xFF:
                position += 1
                continue
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            if length < 2:
                raise _EndError
            body = data[position + 4 : position + 2 + length]
            if marker in (0xC0, 0xC1):
                if body[0] != 8:
                    raise _EndError
                for index in range(body[5]):
                    name, factors = body[6 + 3 * index], body[7 + 3 * index]
                    self.components[name] = _Component(factors >> 4, factors & 15)
            elif 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                raise _EndError  # progressive, lossless or arithmetic
            elif marker == 0xC4:
                self._huffman(body)
            elif marker == 0xDD:
                self.restart = int.from_bytes(body[:2], "big")
            elif marker == 0xDA:
                for index in range(body[0]):
                    component = self.components[body[1 + 2 * index]]
                    component.dc, component.ac = body[2 + 2 * index] >> 4, 16 | body[2 + 2 * index] & 15
                    self.order.append(component)
                return position + 2 + length
            position += 2 + length

    def _huffman(self, body: bytes) -> None:
        """Makes a table of 16 bits -> (length, symbol); length 0 marks codes that do not exist."""
        at = 0
        while at + 17 <= len(body):
            name, counts = body[at], body[at + 1 : at + 17]
            at += 17
            table: list[tuple[int, int]] = []
            for length, count in enumerate(counts, 1):
                for symbol in body[at : at + count]:
                    table += [(length, symbol)] * (1 << (16 - length))
                at += count
            self.tables[name] = (table + [(0, 0)] * (65536 - len(table)))[:65536]

    def walk(self) -> None:
        """Decodes blocks until enough have been seen."""
        single = len(self.order) == 1  # a scan of one component is not interleaved: one block at a time
        seen = units = 0
        while seen < _BLOCKS:
            if self.restart and units == self.restart:
                self._skip_restart()
                units = 0
            for component in self.order:
                for _ in range(1 if single else component.across * component.down):
                    self._block(component)
                    seen += 1
            units += 1

    def _block(self, component: _Component) -> None:
        size = self._symbol(self.tables[component.dc])
        if size > _DC_BITS:
            raise _BrokenError
        self._drop_bits(size)
        table = self.tables[component.ac]
        index = 1
        while index < 64:
            symbol = self._symbol(table)
            run, size = symbol >> 4, symbol & 15
            if size == 0:
                if run != 15:
                    return
                index += 16
                continue
            index += run + 1
            if index > 64 or size > _AC_BITS:
                raise _BrokenError
            self._drop_bits(size)

    def _symbol(self, table: list[tuple[int, int]]) -> int:
        self._fill(16)
        length, symbol = table[(self.bits >> (self.count - 16)) & 0xFFFF]
        if length == 0:
            raise _BrokenError
        self._drop(length)
        return symbol

    def _drop_bits(self, size: int) -> None:
        self._fill(size)
        self._drop(size)

    def _drop(self, size: int) -> None:
        self.count -= size
        self.bits &= (1 << self.count) - 1
        if self.count < 0:
            raise _EndError

    def _fill(self, size: int) -> None:
        while self.count < size:
            byte = self.data[self.position]
            if byte == 0xFF:
                if self.data[self.position + 1] != 0:
                    # A marker: the coder padded with ones; after 4 bytes of padding nothing real is left.
                    self.bits, self.count, self.padding = self.bits << 8 | 0xFF, self.count + 8, self.padding + 1
                    if self.padding > 4:
                        raise _EndError
                    continue
                self.position += 1
            self.position += 1
            self.bits, self.count = self.bits << 8 | byte, self.count + 8

    def _skip_restart(self) -> None:
        self.bits = self.count = 0
        self.padding = 0
        while self.data[self.position] != 0xFF or not 0xD0 <= self.data[self.position + 1] <= 0xD7:
            if self.data[self.position] == 0xFF and self.data[self.position + 1] != 0:
                raise _EndError
            self.position += 1
        self.position += 2


def bmp_runs_are_broken(data: bytes) -> bool:
    """Says whether the run lengths of a compressed BMP lead out of the picture."""
    if len(data) < 54:
        return False
    start, _, width, height = struct.unpack_from("<IIii", data, 10)
    (compression,) = struct.unpack_from("<I", data, 30)
    if compression not in (1, 2):
        return False
    x, y, position, height = 0, 0, start, abs(height)
    for _ in range(_RUNS):
        if position + 2 > len(data):
            return False
        count, value = data[position], data[position + 1]
        position += 2
        if count:
            x += count
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            return False
        elif value == 2:
            if position + 2 > len(data):
                return True
            x, y, position = x + data[position], y + data[position + 1], position + 2
        else:
            x += value
            size = value if compression == 1 else (value + 1) // 2
            position += size + size % 2
        # A run may fill up the last byte, and some writers end the last line twice.
        if x > width + 1 or y > height or (y == height and x > 0):
            return True
    return False
