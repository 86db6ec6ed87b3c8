"""Depth maps, through a model of transformers that the user names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from enlarger.controls.folder import Folder
from enlarger.picture.resize import resize

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]

FAR_IS_LARGE = {"GLPNForDepthEstimation", "ZoeDepthForDepthEstimation", "DepthProForDepthEstimation"}
"""Architectures that give metres; the others give nearness."""


class DepthModel:
    """A depth model in memory."""

    def __init__(self, folder: Folder, device: torch.device) -> None:
        """Open a folder.

        Raises:
            ModelError: It cannot be opened.
        """
        self.device = device
        self._far_is_large = (
            folder.architecture in FAR_IS_LARGE or folder.config.get("depth_estimation_type") == "metric"
        )
        self._processor = folder.processor()
        self._model = folder.model(device)

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
