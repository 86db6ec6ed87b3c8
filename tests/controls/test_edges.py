"""Edges: Canny equals OpenCV's pixel for pixel, soft edges lie where the picture's are."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest

from enlarger.controls.edges import canny, soft


def picture():
    """A square on slopes with a texture of integer hashes; (48, 64, 3) in 0..1."""
    y, x = np.mgrid[0:48, 0:64].astype(np.int64)
    hashed = ((x * 73856093) ^ (y * 19349663)) % 61
    square = np.where((abs(x - 40) < 12) & (abs(y - 20) < 12), 120, 0)
    levels = np.stack([40 + square + hashed // 4, 60 + 2 * y, 90 + x + hashed // 2], axis=2)
    return levels.astype(np.float32) / 255


# opencv-python-headless 5.0.0.93: cv2.Canny(uint8 picture, low, high) > 0, packed, zlib, base85.
OPENCV = {
    (100, 200): ("c-muNpcpXz|MvhyvoSCVfM^Z|1~AP6W`b!HaV#_kHgOg-c@{L9RCCbvvo`SG0MShK9~2k{3IG6s!Uu~"),
    (30, 300): (
        "c-muN00Kr|1~6a@g3`+&bdmyuc7W2R5fEDB1e9(7tN#D*0f=T}U=#q+91IL#nuUSE14;)##lbXZ1499re}F+8WPm0Eg9eE2$-p4~"
        "2uOP|FbMSnY1IY>A&>?Mpi&U6!oa{Y0YY;;fZEf5WFH3@q3~hufYBVtG;0I@4G_&#{{iAZB>@PX1f?AWAl_uKfzr@mkY50yS)hD2"
        "4QQ}kh0;z948#HeW91l{"
    ),
}


@pytest.mark.parametrize("thresholds", OPENCV)
def test_canny_is_opencvs(thresholds):
    packed = np.frombuffer(zlib.decompress(base64.b85decode(OPENCV[thresholds])), np.uint8)
    theirs = np.unpackbits(packed).reshape(48, 64)
    assert np.array_equal(canny(picture(), *thresholds), theirs)


def test_a_weak_edge_lives_by_a_strong_point_on_it_alone():
    """Two faint lines; one of them is crossed by a strong spot."""
    pixels = np.zeros((40, 40, 3), np.float32)
    pixels[:, 10:] += 0.15
    pixels[:, 30:] += 0.15
    pixels[18:22, 30:] += 0.6
    found = canny(pixels, 50, 400)
    assert not found[:, :20].any()
    assert found[:10, 20:].any()  # far from the spot, along the line that it touches
    assert not canny(pixels, 300, 400)[:10].any()


def test_an_edge_is_one_pixel_wide_and_a_flat_picture_has_none():
    pixels = np.zeros((20, 20, 3), np.float32)
    pixels[:, 8:] = 1
    assert canny(pixels)[5].sum() == 1
    assert not canny(np.full((9, 7, 3), 0.4, np.float32)).any()
    assert canny(np.zeros((1, 1, 3), np.float32)).shape == (1, 1)


def test_soft_edges_are_light_where_the_picture_changes():
    edges = soft(picture())
    assert edges.shape == (48, 64)
    assert 0 <= edges.min() <= edges.max() <= 1
    inside, border = edges[14:26, 36:46].mean(), edges[14:26, 28:30].mean()
    assert border > 3 * inside


def test_a_hazy_picture_has_soft_edges_and_a_flat_one_has_none():
    clear, hazy = soft(picture()), soft(picture() * 0.2 + 0.6)
    assert np.abs(clear - hazy).max() < 0.01
    flat = np.full((20, 20, 3), 0.5, np.float32)
    flat[10:] += 0.001  # less than a level
    assert soft(flat).max() < 0.1


def test_a_broad_edge_is_about_as_light_as_a_sharp_one():
    pixels = np.zeros((60, 120, 3), np.float32)
    pixels[:, 30:] = 0.5
    pixels[:, 80:] += np.clip((np.arange(40) + 0.5) / 10, 0, 1)[None, :, None].astype(np.float32) * 0.5
    across = soft(pixels)[30]
    sharp, broad = across[25:35].max(), across[75:95].max()
    assert sharp == pytest.approx(1, abs=0.05)
    assert broad > 0.5 * sharp
    assert across[50:60].max() < 0.02
