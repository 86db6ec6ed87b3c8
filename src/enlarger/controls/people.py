"""Poses of the people in a picture, through models of transformers that the user names.

A pose model (ViTPose, arXiv 2204.12484, and its kin) looks at one person at a time: it is given a box and answers with
a map of likelihood for each key point. Boxes come from a detector, if one is named; else the whole picture is one
person's box.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from enlarger.controls.folder import Folder
from enlarger.controls.pose import Person
from enlarger.errors import ModelError, PictureError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]

COCO = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
)  # fmt: skip
"""COCO's key points of a body, in its order."""

OPENPOSE = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""Where OpenPose's 18 points stand in `COCO`; the neck is between the shoulders, 5 and 6."""

WHOLE_BODY = 133
"""Key points of COCO-WholeBody: the body's 17, 6 of the feet, 68 of the face, 21 of either hand."""

FACE, LEFT_HAND, RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)

SURE = 0.3
"""Least likelihood of a key point that is drawn."""

FOUND = 0.5
"""Least likelihood of a person that is looked at."""

AROUND = 1.25
"""Sides of what a pose model sees, in sides of the box: it was trained with that much around a person."""

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, by which these models' input is normed."""


class PeopleFinder:
    """A detector in memory that knows people."""

    def __init__(self, folder: Folder, device: torch.device) -> None:
        """Open a folder.

        Raises:
            ModelError: It cannot be opened, or finds other things than people.
        """
        self.device = device
        self._processor = folder.processor()
        self._model = folder.model(device)
        labels: Mapping[int, str] = self._model.config.id2label
        self._people = {number for number, label in labels.items() if label.strip().lower() == "person"}
        if not self._people:
            raise ModelError(f"{folder.name} finds no people: none of its labels is 'person'")

    def __call__(self, pixels: Floats) -> list[Box]:
        """Left, top, width and height of everybody in a picture (H, W, 3), 0..1, in its pixels."""
        import torch
        from PIL import Image

        height, width = pixels.shape[:2]
        image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
        with torch.inference_mode():
            inputs = self._processor(images=image, return_tensors="pt").to(self.device)
            outputs = self._model(**inputs)
            found = self._processor.post_process_object_detection(
                outputs, threshold=FOUND, target_sizes=[(height, width)]
            )[0]
        boxes = []
        for label, corners in zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True):
            left, right = (min(max(edge, 0.0), float(width)) for edge in (corners[0], corners[2]))
            top, bottom = (min(max(edge, 0.0), float(height)) for edge in (corners[1], corners[3]))
            if label in self._people and right - left >= 1 and bottom - top >= 1:
                boxes.append((left, top, right - left, bottom - top))
        return boxes


class PoseModel:
    """A pose model in memory."""

    def __init__(self, folder: Folder, device: torch.device, finder: PeopleFinder | None = None) -> None:
        """Open a folder.

        Args:
            folder: Of the pose model.
            device: Where it goes.
            finder: Finds the people; without one the whole picture is one.

        Raises:
            ModelError: It cannot be opened, or its key points are not a body's.
        """
        self.device = device
        self._finder = finder
        self._size = _input_size(folder)
        told = folder.preprocessing()
        self._mean, self._deviation = told.get("image_mean", MEAN), told.get("image_std", DEVIATION)
        self._model = folder.model(device)
        self._points, self._whole = places(self._model.config.id2label, folder.name)
        backbone = getattr(self._model.config, "backbone_config", None)
        self._experts = int(getattr(backbone, "num_experts", 1) or 1) > 1

    def __call__(self, pixels: Floats) -> list[Person]:
        """Everybody in a picture (H, W, 3), 0..1, with key points in its pixels.

        Raises:
            PictureError: Nobody is in it.
        """
        height, width = pixels.shape[:2]
        boxes = [(0.0, 0.0, float(width), float(height))] if self._finder is None else self._finder(pixels)
        people = [person for box in boxes if (person := self._person(pixels, box)).body[:, 2].any()]
        if not people:
            raise PictureError(
                "no person was found in the control picture: name another, or key points in a JSON file, with "
                "--control-image",
                "bad_values",
            )
        return people

    def _person(self, pixels: Floats, box: Box) -> Person:
        import torch

        frame = framed(box, self._size)
        seen = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None].to(self.device)
        seen = cut(seen, frame, self._size)
        mean, deviation = (seen.new_tensor(each).view(1, 3, 1, 1) for each in (self._mean, self._deviation))
        more = {"dataset_index": torch.zeros(1, dtype=torch.long, device=self.device)} if self._experts else {}
        with torch.inference_mode():
            heat = self._model((seen - mean) / deviation, **more).heatmaps[0].float().cpu().numpy()
        points = peaks(heat, frame)
        points[points[:, 2] < SURE] = 0
        body = as_openpose(points[list(self._points)])
        if not self._whole:
            return Person(body, (), np.zeros((0, 3), np.float32))
        hands = tuple(points[part] for part in (LEFT_HAND, RIGHT_HAND) if points[part][:, 2].any())
        return Person(body, hands, points[FACE])


def places(labels: Mapping[int, str], name: str) -> tuple[Sequence[int], bool]:
    """Where COCO's key points stand among a model's, and whether hands and face stand among them, too.

    Args:
        labels: Number -> what the model calls a key point, such as "L_Eye" or "left_eye".
        name: Of the model, for errors.

    Raises:
        ModelError: They are not a body's.
    """
    by_name = {_spoken(label): number for number, label in sorted(labels.items(), reverse=True)}
    if all(point in by_name for point in COCO):
        return [by_name[point] for point in COCO], len(labels) == WHOLE_BODY
    unnamed = all(label.startswith("LABEL_") for label in labels.values())
    if unnamed and len(labels) in (len(COCO), WHOLE_BODY):
        return range(len(COCO)), len(labels) == WHOLE_BODY
    raise ModelError(
        f"{name} gives {len(labels)} key points that are not COCO's: take a pose model of people with COCO's "
        f"{len(COCO)} points, or COCO-WholeBody's {WHOLE_BODY}"
    )


def _spoken(label: str) -> str:
    """A label in words: "left eye" for "L_Eye", "left-eye" and "LeftEye"."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", label)
    sides = {"l": "left", "r": "right"}
    return " ".join(sides.get(word.lower(), word.lower()) for word in words)


def as_openpose(body: Floats) -> Floats:
    """COCO's 17 points (17, 3) as OpenPose's 18; the neck is between the shoulders, where both are seen."""
    left, right = body[COCO.index("left shoulder")], body[COCO.index("right shoulder")]
    neck = (left + right) / 2 if min(left[2], right[2]) > 0 else np.zeros(3, np.float32)
    return np.stack([neck if place is None else body[place] for place in OPENPOSE]).astype(np.float32)


def framed(box: Box, size: tuple[int, int]) -> Box:
    """What a pose model sees of a person: the box, widened to the model's shape, with `AROUND` of that around it.

    Args:
        box: Left, top, width, height.
        size: Height and width of the model's input.
    """
    left, top, width, height = box
    shape = size[1] / size[0]
    wide, tall = max(width, height * shape) * AROUND, max(height, width / shape) * AROUND
    return left + (width - wide) / 2, top + (height - tall) / 2, wide, tall


def cut(pixels: Tensor, frame: Box, size: tuple[int, int]) -> Tensor:
    """A frame of a picture (1, 3, H, W) as (1, 3, *size), black beyond the picture.

    The first and the last sample lie on the frame's edges (unbiased data processing, arXiv 1911.07524).
    """
    import torch
    from torch.nn import functional

    left, top, wide, tall = frame
    x = torch.linspace(left, left + wide, size[1], device=pixels.device)
    y = torch.linspace(top, top + tall, size[0], device=pixels.device)
    height, width = pixels.shape[2:]
    # -1 and 1 are the middles of the first and the last pixel; a side of one pixel has only one.
    across, down = 2 * x / max(1, width - 1) - 1, 2 * y / max(1, height - 1) - 1
    places = torch.stack(torch.meshgrid(down, across, indexing="ij")[::-1], -1)[None]
    return functional.grid_sample(pixels.float(), places, mode="bilinear", padding_mode="zeros", align_corners=True)


def peaks(heat: Floats, frame: Box) -> Floats:
    """The most likely place of each key point.

    A quarter of a cell towards the likelier neighbour is added on either axis (Xiao et al. 2018, arXiv 1804.06208).

    Args:
        heat: (K, h, w), likelihoods.
        frame: What the map lies on, in pixels.

    Returns:
        (K, 3): x, y in pixels, and the likelihood.
    """
    left, top, wide, tall = frame
    count, height, width = heat.shape
    best = heat.reshape(count, -1).argmax(1)
    rows, columns = best // width, best % width
    around = np.pad(heat, ((0, 0), (1, 1), (1, 1)), mode="edge")
    each = np.arange(count)
    x = columns + 0.25 * np.sign(around[each, rows + 1, columns + 2] - around[each, rows + 1, columns])
    y = rows + 0.25 * np.sign(around[each, rows + 2, columns + 1] - around[each, rows, columns + 1])
    x, y = left + x * wide / max(1, width - 1), top + y * tall / max(1, height - 1)
    return np.stack([x, y, heat[each, rows, columns]], 1).astype(np.float32)


def _input_size(folder: Folder) -> tuple[int, int]:
    """Height and width of what the model sees.

    Raises:
        ModelError: The folder does not say it.
    """
    told: Any = folder.preprocessing().get("size")
    if not isinstance(told, Mapping):
        backbone = folder.config.get("backbone_config") or {}
        sides: Any = backbone.get("image_size") or folder.config.get("image_size")
        sides = [sides, sides] if isinstance(sides, int) else sides
        told = dict(zip(("height", "width"), sides or (), strict=False))
    try:
        return int(told["height"]), int(told["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder.name} does not say how large a picture it sees: it has no preprocessor_config.json"
        ) from error
