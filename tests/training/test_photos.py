"""Pairs of sharp and small crops: the degradation that `enlarger degrade` makes, every pair a function of its seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from enlarger.errors import PictureError
from enlarger.picture.bicubic import shrink
from enlarger.training.photos import MARGIN, Photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of colourful noise, one of them too small for crops."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, sides in (("a.png", (90, 70)), ("b.png", (64, 100)), ("tiny.png", (20, 20))):
        coarse = generator.integers(0, 256, (sides[0] // 2, sides[1] // 2, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(sides[::-1], Image.Resampling.BICUBIC).save(folder / name)
    return folder


def test_pairs_are_a_function_of_the_generator(folder: Path) -> None:
    photos = Photos(folder, smallest=48)
    first, again, other = (photos.pairs(np.random.default_rng([seed]), 4, 32) for seed in (5, 5, 6))
    assert all(bool((one == two).all()) for one, two in zip(first, again, strict=True))
    assert not bool((first[0] == other[0]).all())
    assert first[0].shape == (4, 3, 32, 32)
    assert first[1].shape == (4, 3, 8, 8)


def test_the_small_crop_is_the_whole_pictures_reduction(folder: Path) -> None:
    photos = Photos(folder, smallest=48)
    picture = photos.pictures[0]
    whole = shrink(picture[:88, :68], 4)

    class Placed(Photos):
        def crop(self, generator: np.random.Generator, side: int) -> np.ndarray:
            return picture[16 - MARGIN : 16 - MARGIN + side, 8 - MARGIN + 4 : 8 - MARGIN + 4 + side]

    sharp, small = Placed(folder, smallest=48).pairs(np.random.default_rng(0), 1, 32)
    expected = whole[4:12, 3:11].astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(small[0].numpy() - expected).max() < 1e-6
    assert np.abs(sharp[0].numpy() - (picture[16:48, 12:44].transpose(2, 0, 1) / 127.5 - 1)).max() < 1e-6


def test_photos_held_out_and_too_small_are_not_used(folder: Path) -> None:
    assert Photos(folder, smallest=48).names == ["a.png", "b.png"]
    assert Photos(folder, hold_out=["a.png"], smallest=48).names == ["b.png"]
    with pytest.raises(PictureError, match="no picture"):
        Photos(folder, hold_out=["a.png", "b.png"], smallest=48)


def test_a_photo_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"a\.png is text.* --hold-out"):
        Photos(tmp_path)


def test_all_orientations_and_places_are_drawn(folder: Path) -> None:
    photos = Photos(folder, hold_out=["b.png"], smallest=48)
    generator = np.random.default_rng(0)
    crops = {photos.crop(generator, 48).tobytes() for _ in range(60)}
    assert len(crops) > 55
