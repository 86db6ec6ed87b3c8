"""Depth maps, through a model of transformers that the user names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from enlarger.errors import ModelError
from enlarger.picture.resize import resize

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]

FAR_IS_LARGE = {"GLPNForDepthEstimation", "ZoeDepthForDepthEstimation", "DepthProForDepthEstimation"}
"""Architectures that give metres; the others give nearness."""


class DepthModel:
    """A depth model in memory.

    Attributes:
        name: Of its folder.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        """Open a folder as transformers writes it; nothing in it is run.

        Raises:
            ModelError: No folder, or no depth model in it.
        """
        self.name = Path(folder).name
        self.device = device
        try:
            config: dict[str, Any] = json.loads(Path(folder, "config.json").read_text("utf-8"))
            kind = str((config.get("architectures") or [""])[0])
        except (OSError, ValueError, AttributeError, IndexError, TypeError) as error:
            raise ModelError(f"{folder} is no folder of a transformers model: it has no config.json to read") from error
        if not kind.endswith("ForDepthEstimation"):
            raise ModelError(
                f"{self.name} is {kind or 'of no stated kind'}, no model for depth (...ForDepthEstimation)"
            )
        self._far_is_large = kind in FAR_IS_LARGE or config.get("depth_estimation_type") == "metric"
        try:
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation
        except ImportError as error:
            raise ModelError(
                f'depth maps need an extra that is not installed ({error}): pip install "enlarger[diffusers]"'
            ) from error
        import torch

        with _quiet():
            try:
                self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
                model = AutoModelForDepthEstimation.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
                )
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                line = str(error).partition("\n")[0][:160]
                raise ModelError(f"the depth model {self.name} cannot be opened: {line}") from error
        self._model = model.eval().to(device)

    def __call__(self, pixels: Floats) -> Floats:
        """How near a picture (H, W, 3), 0..1, is: (H, W), 1 for the nearest and 0 for the farthest."""
        import torch
        from PIL import Image

        image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
        with torch.inference_mode():
            inputs = self._processor(images=image, return_tensors="pt").to(self.device)
            depth = self._model(**inputs).predicted_depth[0].float().cpu().numpy()
        near = -depth if self._far_is_large else depth
        height, width = pixels.shape[:2]
        large = resize(np.ascontiguousarray(near), (height, width))
        low, high = float(large.min()), float(large.max())
        return np.asarray((large - low) / max(high - low, 1e-6), np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks and bars on stderr."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
