"""What a file is, by its first bytes: a picture to read, or something else with a name and a remedy.

Pillow says "cannot identify" to all of these alike; a name that ends in .png says nothing either.
"""

from __future__ import annotations

from enlarger.errors import PictureError

EXTENSIONS = {
    "PNG": ("png", "apng"),
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "WEBP": ("webp",),
    "TIFF": ("tif", "tiff", "btf", "tf8"),
    "BMP": ("bmp", "dib"),
    "GIF": ("gif",),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "AVIF": ("avif", "avifs"),
    "QOI": ("qoi",),
    "TGA": ("tga",),
    "HEIC": ("heic", "heif", "hif"),
}
"""Format -> the endings that mean it, the usual one first."""

READABLE = "PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, AVIF, QOI and TGA"

# Raw camera files are TIFF inside; their makers' marks or the DNG tag tell.
_RAW_MARKS = (
    (b"II*\0\x10\0\0\0CR", "a Canon raw file"),
    (b"IIRO", "an Olympus raw file"),
    (b"IIU\0", "a Panasonic raw file"),
)
_UNSUPPORTED = (
    (b"8BPS", "a Photoshop document"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"\0\0\x02\0", "a Windows cursor"),
    (b"icns", "an Apple icon"),
    (b"DDS ", "a DDS texture"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"gimp xcf", "a GIMP document"),
    (b"FUJIFILMCCD-RAW", "a Fujifilm raw file"),
    (b"P7", "a PAM picture"),
    (b"AT&TFORM", "DjVu"),
)
_FOREIGN = (
    (b"\x1f\x8b", "gzip data", "unpack it first"),
    (b"PK\3\4", "a ZIP archive", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"BZh", "bzip2 data", "unpack it first"),
    (b"\xfd7zXZ", "xz data", "unpack it first"),
    (b"(\xb5/\xfd", "zstandard data", "unpack it first"),
    (b"GGUF", "model weights (GGUF)", "give a picture"),
    (b"\x7fELF", "a program", "give a picture"),
    (b"MZ", "a program", "give a picture"),
    (b"\x1aE\xdf\xa3", "a video (Matroska/WebM)", "extract a frame as PNG first"),
    (b"OggS", "audio or video (Ogg)", "give a picture"),
    (b"ID3", "audio (MP3)", "give a picture"),
    (b"fLaC", "audio (FLAC)", "give a picture"),
)
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}


def sniff(head: bytes, size: int, name: str, tail: bytes = b"") -> str:
    """Gives the format of a picture ("PNG", "JPEG", ... or "HEIC"), or raises what it is instead.

    Args:
        head: The first bytes, 1024 of them if there are as many.
        size: Bytes in all.
        name: How to call the picture in the error; its ending only breaks ties (TGA has no signature).
        tail: The last bytes, 32 of them if there are as many (TGA's signature is there).
    """
    if size == 0:
        raise PictureError(f"{name} is empty (0 bytes); save or download it again", "empty")
    known = _signature(head)
    if known:
        return known
    if _is_tga(head, tail, name):  # before the icons: the first bytes of both may be the same
        return "TGA"
    for mark, what in (*_RAW_MARKS, *_UNSUPPORTED):
        if head.startswith(mark):
            raise unsupported(name, what)
    if head[4:8] == b"ftyp":
        return _brand(head, name)
    if head.startswith(b"RIFF"):
        raise _foreign(name, "a RIFF file but not WebP (audio or video)", "extract a frame as PNG first")
    for mark, what, remedy in _FOREIGN:
        if head.startswith(mark):
            raise _foreign(name, what, remedy)
    if head.startswith(b"version https://git-lfs"):
        raise _foreign(name, "a Git LFS pointer, not the picture itself", "fetch it with `git lfs pull`")
    _refuse_text(head, name)
    if not head.strip(b"\0"):
        raise _foreign(name, "nothing but zero bytes", "copy or download it again")
    raise PictureError(f"{name} is not a picture that Enlarger knows; it reads {READABLE}", "not_a_picture")


def unsupported(name: str, what: str) -> PictureError:
    """Gives the error for a picture of a kind that is not read."""
    return PictureError(
        f"{name} is {what}, which Enlarger does not read; convert it to PNG or TIFF first", "unsupported_format"
    )


def _foreign(name: str, what: str, remedy: str) -> PictureError:
    return PictureError(f"{name} is {what}; {remedy}", "not_a_picture")


def _signature(head: bytes) -> str | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\x89PNG"):
        return "PNG"  # the PNG reader tells how the signature was damaged
    if head.startswith(b"\xff\xd8\xff") or head == b"\xff\xd8":
        return "JPEG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and not head.startswith(_RAW_MARKS[0][0]):
        return "TIFF"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"qoif"):
        return "QOI"
    if head[:1] == b"P" and head[1:2] in b"123456fF" and head[2:3] in (b" ", b"\t", b"\n", b"\r", b"#"):
        return "PPM"
    # "BM" alone could be text: the length of the second header (12..124) tells.
    if head.startswith(b"BM") and (len(head) < 18 or int.from_bytes(head[14:18], "little") in range(12, 125)):
        return "BMP"
    return None


def _brand(head: bytes, name: str) -> str:
    end = min(int.from_bytes(head[:4], "big"), len(head)) if head[:4] != b"\0\0\0\0" else len(head)
    brands = {head[8:12]} | {head[i : i + 4] for i in range(16, end, 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & _HEIF_BRANDS:
        return "HEIC"
    if head[8:12] == b"crx ":
        raise unsupported(name, "a Canon raw file")
    raise _foreign(name, "a video (MP4/MOV)", "extract a frame as PNG first")


def _refuse_text(head: bytes, name: str) -> None:
    for mark in (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"):
        head = head.removeprefix(mark)
    start = head.replace(b"\0", b"").lstrip().lower()
    if (start.startswith((b"<?xml", b"<svg", b"<!--", b"<!doctype svg")) and b"<svg" in start) or start.startswith(
        b"<?xml"
    ):
        raise unsupported(name, "SVG or other XML")
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        raise _foreign(name, "a web page, not a picture", "download the picture itself")
    if start.startswith((b"{", b"[")):
        raise _foreign(name, "JSON, perhaps a server's error message", "download the picture itself")
    if len(start) >= 8 and all(byte in b"\t\n\r\f" or 32 <= byte < 127 or byte >= 128 for byte in start):
        try:
            head.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.end < len(head) - 3:  # a letter cut by the end of `head` is no objection
                return
        raise _foreign(name, "text", "give a picture")


def _is_tga(head: bytes, tail: bytes, name: str) -> bool:
    if len(head) < 18 or head[1] > 1 or head[2] not in (1, 2, 3, 9, 10, 11) or head[16] not in (8, 15, 16, 24, 32):
        return False
    return tail[-18:-2] == b"TRUEVISION-XFILE" or name.lower().endswith(".tga")
