"""Make `references.json`: the metrics' values by other people's code, for the pictures of `conftest.py`.

    pip download --no-deps lpips==0.1.4 dists-pytorch==0.1 basicsr==1.4.2     # and unpack them into PACKAGES
    pip install scikit-image==0.26.0 scipy                                    # scipy for basicsr's NIQE
    python tests/evaluation/make_references.py PACKAGES ../shared/weights > tests/evaluation/references.json

lpips and DISTS_pytorch ask torchvision for the backbones; a stand-in builds them from the weights named.
basicsr's NIQE is called with a float64 plane: its own float32 loses the third digit on flat pictures.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _stand_in(weights: Path) -> None:
    def network(plan: list[Any], files: list[str]) -> nn.Module:
        layers: list[nn.Module] = []
        channels = 3
        for part in plan:
            if isinstance(part, nn.Module):
                layers.append(part)
            else:
                outputs, side, stride, padding = part
                layers += [nn.Conv2d(channels, outputs, side, stride, padding), nn.ReLU()]
                channels = outputs
        net = nn.Module()
        net.features = nn.Sequential(*layers)
        net.load_state_dict({k: v.float() for f in files for k, v in load_file(weights / f).items()})
        return net

    def vgg16(**_: Any) -> nn.Module:
        sizes = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
        files = ["vgg16_to_relu4_3_fp16.safetensors", "vgg16_conv5_fp16.safetensors"]
        return network([(n, 3, 1, 1) if n else nn.MaxPool2d(2) for n in sizes], files)

    def alexnet(**_: Any) -> nn.Module:
        plan = [(64, 11, 4, 2), nn.MaxPool2d(3, 2), (192, 5, 1, 2), nn.MaxPool2d(3, 2), (384, 3, 1, 1), (256, 3, 1, 1)]
        return network([*plan, (256, 3, 1, 1)], ["alexnet_features.safetensors"])

    torchvision = types.ModuleType("torchvision")
    for name in ("models", "transforms"):
        module = types.ModuleType(f"torchvision.{name}")
        setattr(torchvision, name, module)
        sys.modules[f"torchvision.{name}"] = module
    torchvision.models.vgg16, torchvision.models.alexnet = vgg16, alexnet
    sys.modules["torchvision"] = torchvision


def _niqe(packages: Path) -> Any:
    root = packages / "basicsr-1.4.2" / "basicsr"
    registry = types.ModuleType("basicsr.utils.registry")
    registry.METRIC_REGISTRY = types.SimpleNamespace(register=lambda: lambda function: function)
    metric_util = types.ModuleType("basicsr.metrics.metric_util")
    metric_util.reorder_image = metric_util.to_y_channel = None
    sys.modules |= {name: types.ModuleType(name) for name in ("cv2", "basicsr", "basicsr.utils", "basicsr.metrics")}
    sys.modules |= {"basicsr.utils.registry": registry, "basicsr.metrics.metric_util": metric_util}
    matlab = _load("basicsr.utils.matlab_functions", root / "utils" / "matlab_functions.py")
    module = _load("basicsr.metrics.niqe", root / "metrics" / "niqe.py")
    model = np.load(root / "metrics" / "niqe_pris_params.npz")
    parameters = [model[name] for name in ("mu_pris_param", "cov_pris_param", "gaussian_window")]
    return matlab, lambda plane: float(module.niqe(plane, *parameters))


def main(packages: Path, weights: Path) -> None:
    """Print the values as JSON."""
    pictures = _load("pictures", Path(__file__).with_name("conftest.py"))
    reference = pictures.truth(72, 90)
    result = pictures.worse(reference)
    big = pictures.truth(200, 300)

    from skimage.color import rgb2ycbcr
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}

    def ssim(first: Any, second: Any) -> float:
        # skimage pads; the valid part of its map is what every window inside the picture gives.
        _, full = structural_similarity(first, second, full=True, **window)
        return float(full[5:-5, 5:-5].mean())

    inner = (slice(4, -4), slice(4, -4))
    luma = [rgb2ycbcr(picture)[..., 0][inner] for picture in (result, reference)]
    colour = [picture[inner] for picture in (result, reference)]
    values: dict[str, dict[str, Any]] = {}

    def put(package: str, **numbers: float) -> None:
        values[package] = numbers

    put(
        "scikit-image 0.26.0",
        **{
            "psnr-y": float(peak_signal_noise_ratio(*luma, data_range=255)),
            "psnr-rgb": float(peak_signal_noise_ratio(*colour, data_range=255)),
            "ssim-y": ssim(*luma),
            "ssim-rgb": float(np.mean([ssim(colour[0][..., c], colour[1][..., c]) for c in range(3)])),
        },
    )
    _stand_in(weights)
    sys.path.insert(0, str(packages))
    import lpips
    from DISTS_pytorch import DISTS

    signed = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (result, reference)]
    unit = [(tensor + 1) / 2 for tensor in signed]
    with torch.no_grad():
        put(
            "lpips 0.1.4",
            **{f"lpips-{net}": float(lpips.LPIPS(net=net, verbose=False)(*signed)) for net in ("alex", "vgg")},
        )
        sys.prefix = str(packages / "DISTS_pytorch-0.1.data" / "data")  # where that package looks for its weights
        put("dists-pytorch 0.1", dists=float(DISTS()(*unit)))
    matlab, niqe = _niqe(packages)
    planes = [np.round(rgb2ycbcr(p)[..., 0]) for p in (big, pictures.worse(big))]
    put("basicsr 1.4.2", niqe=niqe(planes[0]), niqe_worse=niqe(planes[1]))
    small = matlab.imresize(reference.astype(np.float32), 1 / 2)
    values["basicsr 1.4.2"]["imresize_half_row_0_red"] = [round(float(v), 4) for v in small[0, :, 0]]
    json.dump(values, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
