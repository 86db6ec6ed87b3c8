from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from enlarger.errors import ModelError, PictureError
from enlarger.evaluation.metrics import Case, Judge, Networks
from enlarger.evaluation.parameters import open_vgg

REFERENCES = json.loads(Path(__file__).with_name("references.json").read_text())


def test_lpips_alex_equals_the_authors_package_without_any_file_of_the_users(result, reference):
    # 1e-4: four of the five convolutions ship in float16.
    expected = REFERENCES["lpips 0.1.4"]["lpips-alex"]
    assert Networks().lpips_alex(result, reference) == pytest.approx(expected, abs=1e-4)


def test_lpips_vgg_and_dists_equal_the_authors_packages(result, reference, vgg_files):
    networks = Networks(tuple(vgg_files))
    assert networks.lpips_vgg(result, reference) == pytest.approx(REFERENCES["lpips 0.1.4"]["lpips-vgg"], abs=1e-5)
    assert networks.dists(result, reference) == pytest.approx(REFERENCES["dists-pytorch 0.1"]["dists"], abs=1e-5)


def test_equal_pictures_have_no_perceptual_distance(reference, vgg_files):
    networks = Networks(tuple(vgg_files))
    for metric in (networks.lpips_alex, networks.lpips_vgg, networks.dists):
        assert metric(reference, reference) == pytest.approx(0, abs=1e-6)


def test_niqe_equals_basicsr(pictures):
    truth, worse = pictures
    big = truth(200, 300)
    expected = REFERENCES["basicsr 1.4.2"]
    assert Networks().niqe(big) == pytest.approx(expected["niqe"], rel=1e-3)
    assert Networks().niqe(worse(big)) == pytest.approx(expected["niqe_worse"], rel=1e-3)


def test_niqe_of_baboon_equals_the_authors_matlab(benchmarks):
    """basicsr's comment beside its function: 5.72957338 by MATLAB for this picture."""
    from enlarger.picture.bicubic import resize
    from enlarger.picture.read import read_rgb

    baboon = read_rgb(benchmarks / "Set14" / "HR" / "img_001.png")
    assert Networks().niqe(baboon) == pytest.approx(5.72957338, abs=1e-5)
    blurred = resize(read_rgb(benchmarks / "Set14" / "LRx4" / "img_001.png"), *baboon.shape[:2])
    assert Networks().niqe(blurred) > 7


def test_too_small_pictures_say_how_large_they_must_be(result, reference, vgg_files):
    networks = Networks(tuple(vgg_files))
    for metric, side in ((networks.lpips_alex, 31), (networks.lpips_vgg, 16), (networks.dists, 16)):
        with pytest.raises(PictureError, match=f"at least {side}x{side}"):
            metric(result[: side - 1], reference[: side - 1])
        assert metric(result[:side, :side], reference[:side, :side]) > 0
    with pytest.raises(PictureError, match="at least two blocks"):
        networks.niqe(np.zeros((191, 96, 3), np.uint8))
    with pytest.raises(PictureError, match="contrast"):
        networks.niqe(np.full((192, 192, 3), 128, np.uint8))


def test_metrics_without_their_weights_are_unavailable_with_the_remedy_and_never_a_number(result, reference):
    judge = Judge(["lpips-vgg", "dists", "psnr-y"])
    missing = judge.unavailable()
    assert set(missing) == {"lpips-vgg", "dists"}
    assert all("--vgg FILE" in reason for reason in missing.values())
    assert set(judge.judge(Case(result, reference), missing)) == {"psnr-y"}
    with pytest.raises(ModelError, match="--vgg FILE"):
        judge.judge(Case(result, reference))


def test_half_of_vgg_names_what_is_missing(tmp_path, vgg_files):
    with pytest.raises(ModelError, match=r"features\.24\.weight is missing"):
        open_vgg(vgg_files[:1])
    tensors = load_file(vgg_files[0]) | load_file(vgg_files[1])
    tensors["features.0.weight"] = tensors["features.0.weight"][:32]
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"features\.0\.weight is \(32, 3, 3, 3\), not \(64, 3, 3, 3\)"):
        open_vgg([tmp_path / "a.safetensors"])
    assert Judge(["dists"], [tmp_path / "a.safetensors"]).unavailable().keys() == {"dists"}


def test_vgg_is_read_from_a_pickle_without_running_it(tmp_path, vgg_files):
    tensors = load_file(vgg_files[0]) | load_file(vgg_files[1])
    torch.save(tensors | {"classifier.0.weight": torch.zeros(2)}, tmp_path / "vgg16.pth")
    assert len(open_vgg([tmp_path / "vgg16.pth"])) == 26

    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    for name in ("evil.pth", "text.pth", "absent.pth"):
        with pytest.raises(ModelError, match=name):
            open_vgg([tmp_path / name])
    assert not (tmp_path / "ran").exists()


def test_the_licences_lie_beside_the_parameters():
    data = files("enlarger.evaluation") / "data"
    text = (data / "LICENCES.md").read_text()
    names = [entry.name for entry in data.iterdir() if entry.name.endswith(".safetensors")]
    assert len(names) == 4
    assert all(f"`{name}`" in text for name in names)
