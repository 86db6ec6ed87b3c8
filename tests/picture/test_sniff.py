"""What a file is, by its bytes: the kind of error and the remedy."""

from __future__ import annotations

import pytest

from enlarger.errors import PictureError
from enlarger.picture.sniff import sniff

FOREIGN = [
    (b"\x1f\x8b\x08", "gzip", "not_a_picture"),
    (b"PK\3\4", "ZIP", "not_a_picture"),
    (b"GGUF\x03", "weights", "not_a_picture"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull", "not_a_picture"),
    (b"<!DOCTYPE html><html>", "web page", "not_a_picture"),
    (b"\xef\xbb\xbf\n <html>", "web page", "not_a_picture"),
    (b'{"error": "not found"}', "JSON", "not_a_picture"),
    (b"just some words, not a picture", "text", "not_a_picture"),
    ("Ein paar Wörter, ünïcödé".encode(), "text", "not_a_picture"),
    (bytes(500), "zero bytes", "not_a_picture"),
    (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video", "not_a_picture"),
    (b"RIFF\x20\0\0\0AVI LIST", "RIFF", "not_a_picture"),
    (b"\x1aE\xdf\xa3", "video", "not_a_picture"),
    (b"\x93\x01\x02\x80\x81\xfe\xff\x00\x01", "reads PNG", "not_a_picture"),
    (b"8BPS\0\1", "Photoshop", "unsupported_format"),
    (b"%PDF-1.7", "PDF", "unsupported_format"),
    (b"%!PS-Adobe-3.0 EPSF", "PostScript", "unsupported_format"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'>", "SVG", "unsupported_format"),
    (b"<?xml version='1.0'?>\n<svg>", "SVG", "unsupported_format"),
    (b"\xff\x0a\0\0", "JPEG XL", "unsupported_format"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "unsupported_format"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", "unsupported_format"),
    (b"\0\0\1\0\1\0", "icon", "unsupported_format"),
    (b"DDS \x7c", "DDS", "unsupported_format"),
    (b"v/1\x01\2\0\0\0", "OpenEXR", "unsupported_format"),
    (b"II*\0\x10\0\0\0CR\2\0", "Canon raw", "unsupported_format"),
    (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "Canon raw", "unsupported_format"),
    (b"P7\nWIDTH 2\n", "PAM", "unsupported_format"),
]


@pytest.mark.parametrize(("head", "says", "kind"), FOREIGN, ids=[says for _, says, _ in FOREIGN])
def test_what_is_no_picture_is_named_with_its_remedy(head: bytes, says: str, kind: str) -> None:
    with pytest.raises(PictureError, match=says) as caught:
        sniff(head, len(head), "x.png")
    assert caught.value.kind == kind
    assert str(caught.value).startswith("x.png ")


@pytest.mark.parametrize(
    ("head", "format"),
    [
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP"),
        (b"II*\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (b"GIF87a", "GIF"),
        (b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "BMP"),
        (b"P6\n", "PPM"),
        (b"P5#c\n", "PPM"),
        (b"Pf\n", "PPM"),
        (b"qoif", "QOI"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    ],
)
def test_pictures_are_known_by_their_first_bytes(head: bytes, format: str) -> None:
    assert sniff(head, len(head), "x.bin") == format


@pytest.mark.parametrize("text", [b"BMW is a company, not a picture", b"P5 Ranking of words", b"PF sense and more"])
def test_words_that_start_like_a_picture_are_text_or_refused_later(text: bytes) -> None:
    from enlarger.picture.read import read

    with pytest.raises(PictureError) as caught:
        read(text)
    assert caught.value.kind in ("not_a_picture", "corrupt", "truncated")


def test_nothing_is_empty() -> None:
    with pytest.raises(PictureError, match="0 bytes") as caught:
        sniff(b"", 0, "x")
    assert caught.value.kind == "empty"


def test_tga_needs_its_footer_or_its_name() -> None:
    head = bytes([0, 0, 2]) + bytes(9) + bytes([4, 0, 4, 0, 24, 0])
    footer = bytes(8) + b"TRUEVISION-XFILE.\0"
    assert sniff(head, 100, "x.bin", footer) == "TGA"
    assert sniff(head, 100, "x.TGA") == "TGA"
    with pytest.raises(PictureError):
        sniff(head, 100, "x.bin")
