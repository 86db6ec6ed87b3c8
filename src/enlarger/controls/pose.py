"""Poses from OpenPose's JSON, drawn as the pose ControlNets were trained on: coloured bones on black.

Key points come from OpenPose (BODY_25 or COCO) or from the pose editors of A1111, which write the same numbers.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enlarger.errors import PictureError, SettingsError
from enlarger.size import Size

Floats = NDArray[np.float32]
Colour = tuple[float, float, float]

SEEN = 0.05
"""Least confidence of a key point that is drawn."""

LARGEST = 16 << 20
"""Bytes of a JSON file that are read at most."""

BODY_25 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
"""Where COCO's 18 body points stand among OpenPose's 25."""

# 0 nose, 1 neck, 2-4 right arm, 5-7 left arm, 8-10 right leg, 11-13 left leg, 14-17 eyes and ears.
BONES = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Which body points a bone joins; bones and points take the colours of the wheel in this order."""

FINGERS = tuple(
    (4 * finger + joint if joint else 0, 4 * finger + joint + 1) for finger in range(5) for joint in range(4)
)
"""Which of a hand's 21 points a bone joins: from the wrist along each finger."""

SHADE = 0.6
"""Brightness of a bone beside its joints."""

THICK = 4 / 512
"""Half a bone's width, and a joint's radius, in sides of the picture (the shorter one): 4 pixels of 512."""


@dataclass(frozen=True)
class Person:
    """Key points of one person: rows of x, y, confidence.

    Attributes:
        body: (18, 3), COCO's order.
        hands: Up to two of (21, 3).
        face: (n, 3).
    """

    body: Floats
    hands: tuple[Floats, ...]
    face: Floats


def read_pose(path: str | Path, size: Size, frame: Size | None = None) -> list[Person]:
    """The people of a JSON file, their points in pixels of a picture.

    Args:
        path: The file.
        size: Of the picture that they will be drawn on.
        frame: Size of the picture that the points were found in, where the file does not say it.

    Raises:
        PictureError: No such file, or no key points in it.
        SettingsError: The points are in pixels and nothing says of what.
    """
    name = Path(path).name
    try:
        if Path(path).stat().st_size > LARGEST:
            raise PictureError(f"{name} is too large for key points: at most {LARGEST >> 20} MB", "too_large")
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise PictureError(f"cannot read the key points {name}: {error.strerror}", "missing") from error
    except (ValueError, RecursionError) as error:
        raise PictureError(f"{name} is no JSON file with key points", "corrupt") from error
    poses = content if isinstance(content, list) else [content]
    if not poses or not all(isinstance(pose, Mapping) and isinstance(pose.get("people"), list) for pose in poses):
        raise PictureError(f"{name} holds no key points: OpenPose's JSON has an entry 'people'", "bad_values")
    pose = poses[0]  # pose editors keep a list with one entry for each frame
    people = [_person(person, name) for person in pose["people"]]
    said = (pose.get("canvas_height"), pose.get("canvas_width"))
    if all(isinstance(side, int) and side > 0 for side in said):
        frame = Size(*said)
    farthest = max((float(part[:, :2].max()) for person in people for part in _parts(person) if len(part)), default=0)
    if farthest <= 1:
        frame = Size(1, 1)
    if frame is None:
        raise SettingsError(
            f"{name} does not say the size of the picture that its key points were found in: give it with "
            "--control-size WxH"
        )
    scale = np.array([size.width / frame.width, size.height / frame.height, 1], np.float32)
    return [
        Person(person.body * scale, tuple(hand * scale for hand in person.hands), person.face * scale)
        for person in people
    ]


def draw_pose(people: list[Person], size: Size) -> Floats:
    """People as coloured bones and joints on black.

    Args:
        people: As `read_pose` gives them, in pixels of `size`.
        size: Of the picture.

    Returns:
        (H, W, 3), 0..1.
    """
    canvas: Floats = np.zeros((*size, 3), np.float32)
    radius = max(1.0, THICK * min(size))
    for person in people:
        for number, (one, other) in enumerate(BONES):
            start, stop = person.body[one], person.body[other]
            if min(start[2], stop[2]) >= SEEN:
                _bone(canvas, start, stop, radius, _shaded(_hue(number / len(person.body)), SHADE))
        for number, point in enumerate(person.body):
            _dot(canvas, point, radius, _hue(number / len(person.body)))
        for hand in person.hands:
            for number, (one, other) in enumerate(FINGERS):
                if min(hand[one][2], hand[other][2]) >= SEEN:
                    _line(canvas, hand[one], hand[other], radius / 4, _hue(number / len(FINGERS)))
            for point in hand:
                _dot(canvas, point, radius, (0, 0, 1))
        for point in person.face:
            _dot(canvas, point, radius * 0.75, (1, 1, 1))
    return canvas


def _person(entry: Any, name: str) -> Person:
    def points(key: str) -> Floats:
        values = entry.get(key) if isinstance(entry, Mapping) else None
        try:
            found = np.asarray(values or [], np.float32).reshape(-1, 3)
        except (TypeError, ValueError, OverflowError):
            raise PictureError(f"{name}: {key} is no list of x, y and confidence", "bad_values") from None
        if not np.isfinite(found).all():
            raise PictureError(f"{name}: {key} holds a number that is none", "bad_values")
        return found

    body = points("pose_keypoints_2d")
    if len(body) not in (0, 18, 25):
        raise PictureError(
            f"{name} has {len(body)} body points: OpenPose writes 25 (BODY_25) or 18 (COCO)", "bad_values"
        )
    hands = tuple(hand for side in ("left", "right") if len(hand := points(f"hand_{side}_keypoints_2d")) == 21)
    whole = body[list(BODY_25)] if len(body) == 25 else body if len(body) else np.zeros((18, 3), np.float32)
    return Person(whole, hands, points("face_keypoints_2d"))


def _parts(person: Person) -> Iterator[Floats]:
    yield person.body
    yield from person.hands
    yield person.face


def _hue(share: float) -> Colour:
    return colorsys.hsv_to_rgb(share, 1, 1)


def _shaded(colour: Colour, shade: float) -> Colour:
    red, green, blue = colour
    return red * shade, green * shade, blue * shade


def _bone(canvas: Floats, start: Floats, stop: Floats, radius: float, colour: Colour) -> None:
    """A slender ellipse from one point to the other, `radius` at its middle."""
    middle, half = (start[:2] + stop[:2]) / 2, math.dist(start[:2], stop[:2]) / 2
    if half < 0.5:
        return
    along = (stop[:2] - start[:2]) / (2 * half)

    def inside(x: Floats, y: Floats) -> Floats:
        forward, aside = x * along[0] + y * along[1], y * along[0] - x * along[1]
        return np.asarray(radius * (1 - np.hypot(forward / half, aside / radius)))

    _fill(canvas, np.asarray(middle, np.float32), half + radius, inside, colour)


def _line(canvas: Floats, start: Floats, stop: Floats, radius: float, colour: Colour) -> None:
    """A line of one width from one point to the other."""
    middle, half = (start[:2] + stop[:2]) / 2, math.dist(start[:2], stop[:2]) / 2
    along = (stop[:2] - start[:2]) / max(2 * half, 1e-6)

    def inside(x: Floats, y: Floats) -> Floats:
        forward, aside = x * along[0] + y * along[1], y * along[0] - x * along[1]
        return np.asarray(radius - np.hypot(np.maximum(np.abs(forward) - half, 0), aside))

    _fill(canvas, np.asarray(middle, np.float32), half + radius, inside, colour)


def _dot(canvas: Floats, point: Floats, radius: float, colour: Colour) -> None:
    """A disc, where the point was seen."""
    if point[2] >= SEEN:
        _fill(canvas, point[:2], radius, lambda x, y: radius - np.hypot(x, y), colour)


def _fill(canvas: Floats, centre: Floats, reach: float, inside: Any, colour: Colour) -> None:
    """Paint where `inside` (pixels within the shape, negative outside) says, its border one pixel soft.

    As in OpenPose, whole numbers are the middles of pixels.
    """
    height, width = canvas.shape[:2]
    x, y = float(centre[0]), float(centre[1])
    left, right = max(0, math.floor(x - reach - 1)), min(width, math.ceil(x + reach + 2))
    top, bottom = max(0, math.floor(y - reach - 1)), min(height, math.ceil(y + reach + 2))
    if left >= right or top >= bottom:
        return
    rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
    cover = np.clip(inside(columns - x, rows - y) + 0.5, 0, 1)[..., None].astype(np.float32)
    part = canvas[top:bottom, left:right]
    part += cover * (np.asarray(colour, np.float32) - part)
