"""Reading: whatever the user has, in one form.

    source -> bytes -> sniff -> a format's reader (Raw) -> turned, in sRGB floats -> Picture

Each format's reader checks the size that its header declares before anything is decoded. Colour profiles are converted
to sRGB here; `write` converts back.
"""

from __future__ import annotations

import os
import stat
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from enlarger.errors import PictureError, ResourceError, SettingsError
from enlarger.picture import decode, exif, netpbm, png, profile, tiff, xmp
from enlarger.picture.colour import Floats, quantise, to_float
from enlarger.picture.picture import Metadata, Picture
from enlarger.picture.raw import Raw, check_pixels
from enlarger.picture.sniff import EXTENSIONS, sniff

MAX_PIXELS = 100_000_000
_P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)  # white, red, green, blue of Display P3 (cICP 12)
_SLACK = 1e-3  # a float array may overshoot 0..1 by half an 8-bit step's quarter: rounding, not another range


def read(source: Any, *, max_pixels: int = MAX_PIXELS, page: int = 1) -> Picture:
    """Reads a picture.

    Args:
        source: A path, the bytes of a file, an open binary file, a Pillow image, a numpy array (H x W or H x W x 1, 3
            or 4; uint8, uint16, or float 0..1) or a torch tensor (C x H x W or 1 x C x H x W; uint8 or float 0..1).
        max_pixels: Refuse more than this, by the header.
        page: Which page or frame of several, from 1.

    Raises:
        PictureError: the picture is damaged, of a kind not read, or too large; `kind` says which.
        SettingsError: there is no such page.
    """
    if page < 1:
        raise SettingsError(f"page {page} does not exist; pages count from 1")
    try:
        return _read(source, max_pixels, page)
    except MemoryError as error:
        raise ResourceError("not enough memory to read the picture; lower --max-pixels or free some memory") from error


def read_rgb(source: Any, *, max_pixels: int = MAX_PIXELS, page: int = 1) -> NDArray[np.uint8]:
    """A picture as (H, W, 3) bytes: what engines see of it, grey repeated, more than 8 bits rounded, no alpha.

    Arguments and errors are those of `read`.
    """
    seen = read(source, max_pixels=max_pixels, page=page).rgb()
    return np.asarray(quantise(np.ascontiguousarray(seen), 8), dtype=np.uint8)


def _read(source: Any, max_pixels: int, page: int) -> Picture:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return _finish(_from_tensor(source, max_pixels), "torch", "the tensor")
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source, "the array", max_pixels), "numpy", "the array")
    if isinstance(source, Image.Image):
        return _finish(decode.calmly(lambda: _from_pillow(source, max_pixels, page)), "pil", "the image")
    if isinstance(source, Picture):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name, kind = bytes(source), "the picture", "bytes"
    elif isinstance(source, (str, os.PathLike)):
        name, kind = shown(source), "file"
        data = load(source, name, max_pixels)
    elif hasattr(source, "read"):
        try:
            content = source.read()
        except UnicodeDecodeError:  # what a picture gives in text mode
            content = ""
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise PictureError(
                f"the file object cannot be read: {str(error).rstrip('.')}; open it again", "bad_values"
            ) from error
        if not isinstance(content, bytes):
            raise PictureError("the file object gives text; open it in binary mode ('rb')", "bad_values")
        data, name, kind = content, shown(getattr(source, "name", "the picture")), "bytes"
    else:
        raise PictureError(
            f"cannot read a picture from {type(source).__name__}; "
            "give a path, bytes, a Pillow image, a numpy array or a torch tensor",
            "bad_values",
        )
    raw = decode.calmly(lambda: _decode(data, name, max_pixels, page))
    if kind == "file":
        _judge_extension(raw, name)
    return _finish(raw, kind, name, page)


def shown(path: Any) -> str:
    """Gives a path as one line for a message: control characters and undecodable bytes are escaped."""
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else "the picture"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def load(source: str | os.PathLike[str], name: str, max_pixels: int) -> bytes:
    """Reads a file whole, after making sure that it is one and that reading it ends.

    Args:
        source: The path.
        name: How to call it in errors.
        max_pixels: A file that is larger than any picture of that many pixels is refused unread.
    """
    text = os.fsdecode(source)
    if "://" in text.split("/", 1)[0] + "//" and text.lower().startswith(("http:", "https:", "ftp:", "s3:", "file:")):
        raise PictureError(f"{name} is an address; download it first, then give the file", "not_a_picture")
    if not text:
        raise PictureError("the path is empty; give the name of a picture", "missing")
    try:
        found = os.stat(source)
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.islink(source):
            raise PictureError(
                f"{name} is a link to {shown(os.readlink(source))}, which does not exist", "missing"
            ) from error
        raise PictureError(f"{name} does not exist; check the name and the folder", "missing") from error
    except (OSError, ValueError) as error:
        raise PictureError(f"{name} cannot be looked at: {_reason(error)}", "missing") from error
    if stat.S_ISDIR(found.st_mode):
        raise PictureError(f"{name} is a folder; give the pictures in it", "not_a_picture")
    if not stat.S_ISREG(found.st_mode):
        raise PictureError(f"{name} is not a regular file (a pipe, socket or device); give a file", "not_a_picture")
    limit = 32 * max_pixels + (
        64 << 20
    )  # two 16-byte pixels for each: no format needs more, so it is no picture of that size
    if found.st_size > limit:
        raise PictureError(
            f"{name} has {found.st_size / 1e6:,.0f} MB, more than {max_pixels / 1e6:,.0f} megapixels can need; "
            "raise --max-pixels if you trust the file",
            "too_large",
        )
    try:
        with open(source, "rb") as file:
            return file.read()
    except PermissionError as error:
        raise PictureError(f"{name} may not be read; change its permissions", "missing") from error
    except OSError as error:
        raise PictureError(f"{name} cannot be read: {_reason(error)}", "missing") from error


def _reason(error: Exception) -> str:
    return (error.strerror or "unknown reason").lower() if isinstance(error, OSError) else "its name is not valid"


def _decode(data: bytes, name: str, max_pixels: int, page: int) -> Raw:
    format = sniff(data[:1024], len(data), name, data[-32:])
    if format == "PNG":
        raw = png.read_png(data, name, max_pixels)
        return raw if page == 1 else _apng_frame(data, raw, name, page)
    if format == "TIFF":
        return tiff.read_tiff(data, name, max_pixels, page)
    if format == "HEIC":
        return decode.read_heic(data, name, max_pixels, page)
    if format == "PPM" and (deep := netpbm.read_deep(data, name, max_pixels)) is not None:
        if page > 1:
            raise decode.no_page(name, page, 1)
        return deep
    return decode.read_pillow(data, format, name, max_pixels, page)


def _apng_frame(data: bytes, first: Raw, name: str, page: int) -> Raw:
    """Decodes a later frame of an animated PNG, which Pillow composes at 8 bits; the rest is the first's."""
    import io

    from PIL import PngImagePlugin

    if page > first.frames:
        raise decode.no_page(name, page, first.frames)
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            decode.turn_to_page(image, page, first.frames, name)
            image.load()
            frame = decode.from_image(image, name)
    except (SettingsError, MemoryError, Warning):
        raise
    except Exception as error:
        raise decode.failure(data, "PNG", name, error) from error
    if first.depth == 16:
        first.warnings.append("reduced to 8 bit: frames after the first are composed at 8 bit")
    first.samples, first.alpha, first.depth = frame.samples, frame.alpha, 8
    return first


def _judge_extension(raw: Raw, name: str) -> None:
    ending = os.path.splitext(name)[1].lower().removeprefix(".")
    meant = next((format for format, endings in EXTENSIONS.items() if ending in endings), None)
    if meant and raw.format and meant != raw.format:
        raw.warnings.append(f"the name ends in .{ending} but the file is {raw.format}; it was read as {raw.format}")


def _finish(raw: Raw, kind: str, name: str, page: int = 1) -> Picture:
    """Turns, converts and describes what a reader decoded."""
    warnings = raw.warnings
    if raw.frames > 1 and page == 1:
        warnings.append(f"it holds {raw.frames} pages or frames; the first was taken, --page N takes another")
    metadata, orientation = _describe(raw)
    if raw.samples.dtype.kind == "f":
        _require_range(raw.samples, name)
        if raw.alpha is not None:
            _require_range(raw.alpha, name)
    icc, pixels, excess = _convert(raw)
    if orientation != 1:
        pixels = np.ascontiguousarray(decode.orient(pixels, orientation))
        excess = None if excess is None else np.ascontiguousarray(decode.orient(excess, orientation))
    alpha = None
    if raw.alpha is not None:
        alpha = np.ascontiguousarray(decode.orient(to_float(raw.alpha), orientation))
        if raw.alpha.dtype.kind == "f":
            alpha = np.clip(alpha, 0, 1)
    format = "JPEG" if raw.format == "MPO" else raw.format
    return Picture(
        pixels=pixels,
        alpha=alpha,
        depth=raw.depth,
        format=format,
        profile=icc,
        metadata=metadata,
        warnings=tuple(warnings),
        kind=kind,
        excess=excess,
    )


def _convert(raw: Raw) -> tuple[bytes | None, Floats, Floats | None]:
    """Gives the profile to carry, the pixels in sRGB, and what clipping took away."""
    icc, warnings = raw.icc, raw.warnings
    if raw.converted:
        return profile.srgb_profile(), to_float(raw.samples), None
    if raw.cicp and raw.cicp[:2] == (12, 13):
        icc = profile.from_png(1 / 2.2, _P3)
    elif raw.cicp and raw.cicp[:2] not in ((1, 13), (1, 1)):
        icc = None
        warnings.append("HDR or wide-gamut colour (cICP) is not converted; the colours are taken as sRGB")
    elif icc is None:
        icc = profile.from_png(raw.gamma, raw.primaries)
    pixels = to_float(raw.samples)
    if raw.samples.dtype.kind == "f":
        pixels = np.clip(pixels, 0, 1)
    if icc is None:
        return None, pixels, None
    try:
        space = profile.colour_space(icc)
        if space == "GRAY" and pixels.shape[2] == 3:
            raise profile.ProfileError("for grey, but the picture is in colour")
        parsed = profile.parse(icc)
        if parsed is None:
            return _convert_by_tables(raw, icc)
        converted, excess = parsed.to_srgb(pixels)
    except profile.ProfileError:
        warnings.append("the colour profile is damaged or not for these colours; they are taken as sRGB")
        return None, pixels, None
    return icc, converted, excess


def _convert_by_tables(raw: Raw, icc: bytes) -> tuple[bytes | None, Floats, None]:
    if raw.depth > 8:
        raw.warnings.append("its colour profile works by tables; colours were converted to sRGB at 8 bit precision")
    else:
        raw.warnings.append("its colour profile works by tables; colours were converted to sRGB")
    eight = raw.samples if raw.samples.dtype == np.uint8 else (to_float(raw.samples) * 255 + 0.5).astype(np.uint8)
    mode = "L" if eight.shape[2] == 1 else "RGB"
    converted = profile.by_tables(np.ascontiguousarray(eight), icc, mode)
    return profile.srgb_profile(), to_float(converted[..., : eight.shape[2]]), None


def _describe(raw: Raw) -> tuple[Metadata, int]:
    """Gives the metadata corrected, and the orientation that the pixels still need."""
    body: str | None = None
    if raw.xmp:
        try:
            body = xmp.normalise(raw.xmp)
        except ValueError:
            raw.warnings.append("dropped damaged XMP")
    found: exif.Exif | None = None
    if raw.exif:
        try:
            found = exif.parse(raw.exif)
            if found.damaged and raw.format != "TIFF":
                raw.warnings.append("dropped damaged entries of its EXIF")
        except ValueError:
            raw.warnings.append("dropped damaged EXIF")
    orientation = raw.orientation or 1
    if not raw.orientation:
        orientation = found.orientation if found else 1
        # XMP has a say only where EXIF is silent, as Adobe's programs and browsers have it.
        if orientation == 1 and body and not (found and 0x0112 in found.first):
            orientation = xmp.orientation(body)
    if raw.turned or not 1 <= orientation <= 8:
        orientation = 1
    if found:
        found.set_upright()
    dpi = raw.dpi or (found.dpi if found else None)
    dpi = (dpi[1], dpi[0]) if dpi and orientation >= 5 else dpi
    return (
        Metadata(
            exif=found.to_bytes() if found and not found.empty() else None,
            xmp=xmp.pack(xmp.upright(body)) if body else None,
            iptc=raw.iptc or None,
            dpi=dpi,
            dpi_is_ratio=raw.dpi_is_ratio,
            text=raw.text,
        ),
        orientation,
    )


def _require_range(values: NDArray[Any], name: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.argwhere(~finite)
        row, column = (int(index) for index in bad[0][:2])
        raise PictureError(
            f"{name} holds {len(bad)} NaN or infinite values, the first at row {row}, column {column}; repair it first",
            "bad_values",
        )
    low, high = float(values.min()), float(values.max())
    if low < -_SLACK or high > 1 + _SLACK:
        hint = (
            "divide it by 255"
            if low >= 0 and 16 < high <= 255  # less is light of a scene, perhaps
            else "divide it by 65535"
            if low >= 0 and 255 < high <= 65535
            else "scale it to 0..1"
        )
        raise PictureError(f"{name} holds floats {low:g}..{high:g}, not 0..1; {hint} first", "bad_values")


def _from_array(array: NDArray[Any], name: str, max_pixels: int) -> Raw:
    """Checks an array; channels last, native byte order."""
    accepted = "HxW, HxWx1, HxWx3 or HxWx4 of uint8, uint16 or float 0..1"
    given = f"{name} has shape {tuple(array.shape)} and type {array.dtype}"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        hint = (
            "; it looks like channels first: transpose it to HxWxC"
            if array.ndim == 3 and array.shape[0] in (1, 3, 4)
            else ""
        )
        raise PictureError(f"{given}; give {accepted}{hint}", "bad_values")
    if 0 in array.shape:
        raise PictureError(f"{given}, which has no pixels; give {accepted}", "bad_values")
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise PictureError(f"{given}; give {accepted}", "bad_values")
    check_pixels(name, array.shape[1], array.shape[0], max_pixels)
    if array.ndim == 2:
        array = array[..., None]
    native = array.dtype.newbyteorder("=") if array.dtype.kind != "f" else np.dtype(np.float32)
    if array.dtype.kind == "f":
        _require_range(array, name)
    plain = array.astype(native, order="C", copy=False)  # `_convert` makes new ones; the caller's is never changed
    depth = {1: 8, 2: 16, 4: 32}[native.itemsize]
    return Raw(plain[..., :3] if channels == 4 else plain, plain[..., 3] if channels == 4 else None, depth=depth)


def _from_tensor(tensor: Any, max_pixels: int) -> Raw:
    given = f"the tensor has shape {tuple(tensor.shape)} and type {tensor.dtype}"
    accepted = "CxHxW or 1xCxHxW with 1, 3 or 4 channels, uint8 or float 0..1"
    tensor = tensor.detach()
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        hint = (
            "; it looks like channels last: permute it to CxHxW"
            if tensor.ndim == 3 and tensor.shape[2] in (1, 3, 4)
            else ""
        )
        hint = "; give one picture at a time" if tensor.ndim == 4 and tensor.shape[0] > 1 else hint
        raise PictureError(f"{given}; give {accepted}{hint}", "bad_values")
    if tensor.is_floating_point():
        tensor = tensor.float()
    elif str(tensor.dtype) not in ("torch.uint8", "torch.uint16"):
        raise PictureError(f"{given}; give {accepted}", "bad_values")
    array: NDArray[Any] = tensor.cpu().numpy().transpose(1, 2, 0)
    return _from_array(array, "the tensor", max_pixels)


def _from_pillow(image: Image.Image, max_pixels: int, page: int) -> Raw:
    name = "the image"
    if 0 in image.size:
        raise PictureError(
            f"the image has size {image.width}x{image.height}; it needs at least one pixel", "bad_values"
        )
    check_pixels(name, image.width, image.height, max_pixels)
    if page > 1:
        raise SettingsError("page is for files; seek() the image itself before giving it")
    cut = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()) or ()) and image.mode in (
        "RGB",
        "RGBA",
        "LA",
    )
    try:
        image.load()
        raw = decode.from_image(image, name)
    except (PictureError, MemoryError, Warning):
        raise
    except Exception as error:
        raise decode.failure(b" " * 64, image.format or "picture", name, error) from error
    if cut:
        raw.warnings.append("Pillow reduced it to 8 bit; give the path instead of the image to keep 16")
    raw.format = image.format
    if image.format == "TIFF":
        raw.exif, raw.turned = None, True  # Pillow turns a TIFF when it loads it
    return raw
