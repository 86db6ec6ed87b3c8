"""XMP packets: checked, corrected and added to as text, so that everything not understood stays byte for byte.

A packet is XML that came with a foreign file: it must parse, and one with a document type (entities) is refused unread.
"""

from __future__ import annotations

import re
from xml.parsers import expat
from xml.sax.saxutils import escape, unescape

_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_OWN = "https://enlarger.dev/ns/1.0/"
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_LIMIT = 4 << 20  # bytes; a packet beside a picture has a few thousand

_THUMBNAILS = re.compile(r"<xmp:Thumbnails\b[^>]*/>|<xmp:Thumbnails\b.*?</xmp:Thumbnails>", re.S)
_ASIDE = re.compile(r"<!--.*?-->|<\?.*?\?>|<!\[CDATA\[(.*?)\]\]>", re.S)
_PRIVATE = (
    r"exif:GPS\w+",
    r"(?:aux|exifEX|exif):(?:SerialNumber|BodySerialNumber|LensSerialNumber|OwnerName|CameraOwnerName|ImageUniqueID)",
    r"photoshop:(?:City|State|Country)",
    r"Iptc4xmpCore:(?:Location|CountryCode)",
    r"Iptc4xmpExt:(?:LocationCreated|LocationShown)",
    r"xmpMM:(?:DocumentID|InstanceID|OriginalDocumentID|DerivedFrom|History)",
)


def normalise(packet: bytes) -> str:
    """Gives a packet as text; raises ValueError when it is not well-formed, has a document type or is too long."""
    if len(packet) > _LIMIT:
        raise ValueError("too long")
    encoding = "utf-16" if packet[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = re.sub(r"^<\?xml\b[^>]*\?>", "", packet.decode(encoding).strip("\0\ufeff \r\n\t"))
    parser = expat.ParserCreate("utf-8")

    def refuse(*_: object) -> None:
        raise ValueError("has a document type")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text.encode("utf-8"), True)
    except expat.ExpatError as error:
        raise ValueError("not well-formed") from error
    # Without these every "<" opens or closes an element, and the patterns below are safe and fast.
    body = _ASIDE.sub(lambda aside: escape(aside.group(1) or ""), text).strip("\ufeff \r\n\t")
    if "</rdf:RDF>" not in body:
        raise ValueError("holds no RDF")
    return body


def pack(body: str) -> bytes:
    """Gives a packet to write."""
    begin = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    return (begin + body + '\n<?xpacket end="r"?>').encode("utf-8", "replace")


def orientation(body: str) -> int:
    """1..8 as `tiff:Orientation` says, else 1."""
    value = _get(body, "tiff:Orientation")
    return int(value) if value in tuple("12345678") else 1


def upright(body: str) -> str:
    """Says that the pixels have been turned, and drops thumbnails."""
    return _THUMBNAILS.sub("", _replace(body, "tiff:Orientation", "1"))


def resized(body: str, width: int, height: int) -> str:
    """Corrects the sizes in pixels where they are given."""
    sizes = (
        ("exif:PixelXDimension", width),
        ("exif:PixelYDimension", height),
        ("tiff:ImageWidth", width),
        ("tiff:ImageLength", height),
    )
    for name, value in sizes:
        body = _replace(body, name, str(value))
    return body


def without_private(body: str) -> str:
    """Drops position, serial numbers, owners and document identities."""
    for name in _PRIVATE:
        body = _remove(body, name)
    return body


def source_type(body: str | None) -> str | None:
    """Gives the last word of the IPTC digital source type, such as trainedAlgorithmicMedia."""
    value = _get(body or "", "Iptc4xmpExt:DigitalSourceType")
    return value.rsplit("/", 1)[-1] if value else None


def with_source_type(body: str | None, kind: str) -> str:
    """Says how the picture was made; never weakens what is said already.

    Args:
        body: The packet so far.
        kind: trainedAlgorithmicMedia, compositeWithTrainedAlgorithmicMedia or algorithmicallyEnhanced.
    """
    strength = ("algorithmicallyEnhanced", "compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia")
    before = source_type(body)
    if body and before in strength and strength.index(before) >= (strength.index(kind) if kind in strength else 0):
        return body
    body = _remove(body or _new(), r"Iptc4xmpExt:DigitalSourceType")
    return _add(body, f'xmlns:Iptc4xmpExt="{_IPTC}" Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPES}{escape(kind)}"')


def with_record(body: str | None, record: str) -> str:
    """Stores Enlarger's record (JSON in ASCII), replacing an earlier one."""
    body = _remove(body or _new(), "enlarger:record")
    quoted = escape(record, {'"': "&quot;"})
    return _add(body, f'xmlns:enlarger="{_OWN}" enlarger:record="{quoted}"')


def record(body: str) -> str | None:
    """Gives the stored record."""
    return _get(body, "enlarger:record")


def without_record(body: str) -> str:
    """Drops a record of an earlier enlargement."""
    return _remove(body, "enlarger:record")


def _new() -> str:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        "</rdf:RDF></x:xmpmeta>"
    )


def _add(body: str, attributes: str) -> str:
    at = body.rindex("</rdf:RDF>")
    return f'{body[:at]}<rdf:Description rdf:about="" {attributes}/>{body[at:]}'


def _get(body: str, name: str) -> str | None:
    match = re.search(rf"\b{name}\s*=\s*(?:\"([^\"]*)\"|'([^']*)')|<{name}\b[^>]*>([^<]*)</{name}>", body)
    if match is None:
        return None
    value = next((group for group in match.groups() if group is not None), "")
    return unescape(value, {"&quot;": '"', "&apos;": "'"}).strip()


def _replace(body: str, name: str, value: str) -> str:
    body = re.sub(rf"(\b{name}\s*=\s*)(?:\"[^\"]*\"|'[^']*')", rf'\g<1>"{value}"', body)
    return re.sub(rf"(<{name}\b[^>]*>)[^<]*(</{name}>)", rf"\g<1>{value}\g<2>", body)


def _remove(body: str, pattern: str) -> str:
    body = re.sub(rf"\s+(?:{pattern})\s*=\s*(?:\"[^\"]*\"|'[^']*')", "", body)
    body = re.sub(rf"<({pattern})\b[^>]*/>", "", body)
    body = re.sub(rf"<({pattern})\b[^>]*[^/]>.*?</\1>|<({pattern})>.*?</\2>", "", body, flags=re.S)
    return re.sub(r'<rdf:Description rdf:about="" xmlns:(?:Iptc4xmpExt|enlarger)="[^"]*"\s*/>', "", body)
