"""EXIF taken apart and put together again, keeping what describes the picture and nothing that describes the old file.

EXIF is a TIFF structure: directories of entries (tag, type, count, value). Values are kept as raw bytes in the
file's own byte order, so unknown tags come through unchanged. Damage costs the damaged entries, never the picture.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
_ORIENTATION, _MAKER_NOTE, _USER_COMMENT = 0x0112, 0x927C, 0x9286
_WIDTH, _HEIGHT = 0xA002, 0xA003
_MAX_ENTRIES = 1000  # in one directory; cameras write about 60
_MAX_BYTES = 4 << 20  # of all values together: entries may claim the same bytes again and again

# Below 0x0200 the first directory describes the old file's layout, but for these.
_DESCRIPTIVE = {0x010E, 0x010F, 0x0110, _ORIENTATION, 0x0131, 0x0132, 0x013B, 0x013C}
# Above it, these do, or hold what is carried apart: colour sampling, XMP, IPTC, Photoshop blocks, ICC profile, PrintIM.
_LAYOUT = {*range(0x0200, 0x0215), 0x02BC, 0x83BB, 0x8649, 0x8773, 0xC4A5}
# Position, serial numbers, owners' names, unique number of the shot.
_PRIVATE_FIRST = {0x013B, 0x013C, 0x9C9D, 0xC62F}
_PRIVATE_EXIF = {0xA420, 0xA430, 0xA431, 0xA435}

Entry = tuple[int, int, bytes]  # type, count, value in the structure's byte order
Directory = dict[int, Entry]


@dataclass
class Exif:
    """The three directories that are carried over; thumbnail and maker note are not."""

    order: str = "<"
    first: Directory = field(default_factory=dict)
    camera: Directory = field(default_factory=dict)
    position: Directory = field(default_factory=dict)
    damaged: bool = False
    size: int = 0
    """Bytes of the values read."""
    _dpi: tuple[float, float] | None = None

    @property
    def orientation(self) -> int:
        """1..8 as EXIF counts; 1 when it says nothing valid."""
        entry = self.first.get(_ORIENTATION)
        if entry is None or entry[0] != 3 or entry[1] < 1:
            return 1
        value = int(struct.unpack_from(self.order + "H", entry[2])[0])
        return value if 1 <= value <= 8 else 1

    def comment(self) -> str | None:
        """Gives the user comment as text."""
        entry = self.camera.get(_USER_COMMENT)
        if entry is None or len(entry[2]) < 8:
            return None
        code, content = entry[2][:8], entry[2][8:]
        if code.startswith(b"UNICODE"):
            # A1111 writes big-endian whatever the rest is, cameras the order of the rest; letters tell which it was.
            read = [content.decode(order, "replace") for order in ("utf-16-be", "utf-16-le")]
            return max(read, key=lambda text: sum(letter.isascii() for letter in text))
        return content.decode("latin-1").rstrip("\0 ") if code.startswith(b"ASCII") else None

    def set_comment(self, text: str) -> None:
        """Stores a text as A1111 does: UNICODE, big-endian whatever the order of the rest."""
        value = b"UNICODE\0" + text.encode("utf-16-be", "replace")
        self.camera[_USER_COMMENT] = (7, len(value), value)

    def set_size(self, width: int, height: int) -> None:
        """Corrects the size in pixels where one is given."""
        for tag, value in ((_WIDTH, width), (_HEIGHT, height)):
            if tag in self.camera:
                self.camera[tag] = (4, 1, struct.pack(self.order + "I", value))

    def set_upright(self) -> None:
        """Says that the pixels have been turned."""
        if _ORIENTATION in self.first:
            self.first[_ORIENTATION] = (3, 1, struct.pack(self.order + "H", 1))

    @property
    def dpi(self) -> tuple[float, float] | None:
        """Pixels per inch, where both directions and an absolute unit are given."""
        return self._dpi

    def set_density(self, dpi: tuple[float, float]) -> None:
        """Stores pixels per inch, for formats without a field of their own."""
        for tag, value in zip((0x011A, 0x011B), dpi, strict=True):
            self.first[tag] = (5, 1, struct.pack(self.order + "II", min(round(value * 10000), 0xFFFFFFFF), 10000))
        self.first[0x0128] = (3, 1, struct.pack(self.order + "H", 2))

    def little_endian(self) -> Exif:
        """Gives the same in little-endian order."""
        if self.order == "<":
            return self
        first, camera, position = (
            {tag: _turned(entry) for tag, entry in part.items()} for part in (self.first, self.camera, self.position)
        )
        return Exif("<", first, camera, position)

    def without_private(self) -> Exif:
        """Gives a copy without position, serial numbers and names of owners."""
        first = {tag: entry for tag, entry in self.first.items() if tag not in _PRIVATE_FIRST}
        camera = {tag: entry for tag, entry in self.camera.items() if tag not in _PRIVATE_EXIF}
        return Exif(self.order, first, camera)

    def empty(self) -> bool:
        """Whether nothing is left to say (an upright orientation alone says nothing)."""
        return not (set(self.first) - {_ORIENTATION}) and not self.camera and not self.position

    def to_bytes(self) -> bytes:
        """Gives the structure, deterministic: entries in the order of their tags."""
        head = (b"II" if self.order == "<" else b"MM") + struct.pack(self.order + "HI", 42, 8)
        return head + self.directories(8, self.first)

    def directories(self, offset: int, first: Directory, big: bool = False) -> bytes:
        """Gives `first` and the directories below it as they lie from `offset` of a file on; `big` for BigTIFF."""
        first = dict(first)
        below = [(tag, part) for tag, part in ((_EXIF_IFD, self.camera), (_GPS_IFD, self.position)) if part]
        for tag, _ in below:
            first[tag] = _pointer(self.order, 0, big)
        start = offset + len(_pack(first, offset, self.order, big))
        parts = b""
        for tag, part in below:
            first[tag] = _pointer(self.order, start + len(parts), big)
            parts += _pack(part, start + len(parts), self.order, big)
        return _pack(first, offset, self.order, big) + parts


def parse(data: bytes) -> Exif:
    """Reads EXIF; raises ValueError when not even its first directory can be read."""
    data = data.removeprefix(b"Exif\0\0")
    if data[:2] not in (b"II", b"MM") or len(data) < 14:
        raise ValueError("no TIFF header")
    order = "<" if data[:2] == b"II" else ">"
    magic, offset = struct.unpack_from(order + "HI", data, 2)
    if magic != 42:
        raise ValueError("no TIFF header")
    exif = Exif(order)
    first = _directory(data, offset, exif, _wanted_first)
    if first is None:
        raise ValueError("the first directory lies outside")
    for tag, target in ((_EXIF_IFD, exif.camera), (_GPS_IFD, exif.position)):
        pointer = first.pop(tag, None)
        if pointer is None:
            continue
        place = struct.unpack(order + "I", pointer[2][:4])[0] if len(pointer[2]) >= 4 else len(data)
        # Maker notes and the interoperability directory hold offsets into the old file.
        part = _directory(data, place, exif, lambda tag: tag not in (_MAKER_NOTE, _INTEROP_IFD))
        if part is None:
            exif.damaged = True
        else:
            target.update(part)
    exif._dpi = _density(first, order)
    exif.first.update({tag: entry for tag, entry in first.items() if tag not in (0x011A, 0x011B, 0x0128)})
    return exif


def _density(first: Directory, order: str) -> tuple[float, float] | None:
    values = []
    for tag in (0x011A, 0x011B):
        kind, _, value = first.get(tag, (0, 0, b""))
        if kind != 5 or len(value) < 8:
            return None
        above, below = struct.unpack_from(order + "II", value)
        values.append(above / below if below else 0.0)
    kind, _, value = first.get(0x0128, (3, 1, struct.pack(order + "H", 2)))
    unit = struct.unpack_from(order + "H", value)[0] if kind == 3 and len(value) >= 2 else 2
    scale = {2: 1.0, 3: 2.54}.get(unit, 0.0)
    dpi = (values[0] * scale, values[1] * scale)
    return dpi if min(dpi) > 1 and max(dpi) < 1e6 else None


def _wanted_first(tag: int) -> bool:
    if tag in (_EXIF_IFD, _GPS_IFD, 0x011A, 0x011B, 0x0128):
        return True
    return tag in _DESCRIPTIVE or (0x0200 <= tag < 0xC4A5 and tag not in _LAYOUT)


def _directory(data: bytes, offset: int, exif: Exif, wanted: Callable[[int], bool]) -> Directory | None:
    if offset + 2 > len(data):
        return None
    (count,) = struct.unpack_from(exif.order + "H", data, offset)
    entries: Directory = {}
    for index in range(min(count, _MAX_ENTRIES)):
        position = offset + 2 + 12 * index
        if position + 12 > len(data):
            exif.damaged = True
            break
        tag, kind, number = struct.unpack_from(exif.order + "HHI", data, position)
        length = _SIZES.get(kind, 0) * number
        start = position + 8 if length <= 4 else struct.unpack_from(exif.order + "I", data, position + 8)[0]
        if not wanted(tag):
            continue
        exif.size += length
        if kind not in _SIZES or start + length > len(data) or exif.size > _MAX_BYTES:
            exif.damaged = True
            continue
        entries[tag] = (kind, number, data[start : start + length])
    return entries


def _pointer(order: str, offset: int, big: bool) -> Entry:
    return (4, 1, struct.pack(order + "I", offset)) if not big else (18, 1, struct.pack(order + "Q", offset))


def _pack(entries: Directory, offset: int, order: str, big: bool = False) -> bytes:
    """Gives a directory and its values as they lie from `offset` on, an even number of bytes."""
    form, inline = ("Q", 8) if big else ("I", 4)
    table = struct.pack(order + ("Q" if big else "H"), len(entries))
    values = b""
    start = offset + len(table) + len(entries) * (4 + 2 * inline) + inline
    for tag in sorted(entries):
        kind, count, value = entries[tag]
        table += struct.pack(order + "HH" + form, tag, kind, count)
        if len(value) <= inline:
            table += value.ljust(inline, b"\0")
        else:
            table += struct.pack(order + form, start + len(values))
            values += value + b"\0" * (len(value) % 2)
    return table + bytes(inline) + values


def _turned(entry: Entry) -> Entry:
    """Gives an entry in the other byte order."""
    kind, count, value = entry
    unit = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}.get(kind, 1)
    swapped = bytearray(len(value))
    for place in range(unit):
        swapped[place::unit] = value[unit - 1 - place :: unit]
    return kind, count, bytes(swapped)
