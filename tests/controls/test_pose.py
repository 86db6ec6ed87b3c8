"""Poses: what OpenPose and the editors write is drawn where they say."""

from __future__ import annotations

import colorsys
import json

import numpy as np
import pytest

from enlarger.controls.pose import BONES, draw_pose, read_pose
from enlarger.errors import PictureError, SettingsError
from enlarger.size import Size

SIZE = Size(128, 96)


def body(points, count=18):
    """Key points as OpenPose lists them: {index: (x, y)}, all others not seen."""
    values = [0.0] * (3 * count)
    for index, (x, y) in points.items():
        values[3 * index : 3 * index + 3] = [x, y, 0.9]
    return values


def written(tmp_path, content):
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(content))
    return path


ARM = {2: (20, 30), 3: (60, 30), 4: (60, 90)}


@pytest.mark.parametrize(
    "content",
    [
        {"version": 1.3, "canvas_width": 96, "canvas_height": 128, "people": [{"pose_keypoints_2d": body(ARM)}]},
        [{"canvas_width": 96, "canvas_height": 128, "people": [{"pose_keypoints_2d": body(ARM)}]}],
        {
            "canvas_width": 192,
            "canvas_height": 256,
            "people": [{"pose_keypoints_2d": body({k: (2 * x, 2 * y) for k, (x, y) in ARM.items()})}],
        },
        {"people": [{"pose_keypoints_2d": body({k: (x / 96, y / 128) for k, (x, y) in ARM.items()})}]},
        {"canvas_width": 96, "canvas_height": 128, "people": [{"pose_keypoints_2d": body(ARM, 25)}]},
    ],
    ids=["openpose", "editor", "larger", "fractions", "body25"],
)
def test_every_way_of_writing_draws_the_same_arm(tmp_path, content):
    drawn = draw_pose(read_pose(written(tmp_path, content), SIZE), SIZE)
    assert drawn.shape == (*SIZE, 3)
    # Joints in the wheel's colours 2, 3 and 4, steps of 20 degrees: OpenPose's (255, 170, 0), (255, 255, 0) ...
    for place, colour in (((30, 20), (1, 2 / 3, 0)), ((30, 60), (1, 1, 0)), ((90, 60), (2 / 3, 1, 0))):
        assert drawn[place] == pytest.approx(colour, abs=1e-5)
    assert drawn[30, 40] == pytest.approx((0.6, 0.4, 0), abs=1e-5)  # bone 2, darker
    assert drawn[60, 60] == pytest.approx((0.6, 0.6, 0), abs=1e-5)  # bone 3
    assert not drawn[100:].any()
    assert not drawn[60, 20].any()


def test_every_bone_joins_its_points_in_its_own_colour(tmp_path):
    """Bone by bone, only its two points seen: a darker line of the wheel's next colour between them."""
    for number, (one, other) in enumerate(BONES):
        content = {"people": [{"pose_keypoints_2d": body({one: (0.2, 0.5), other: (0.8, 0.5)})}]}
        drawn = draw_pose(read_pose(written(tmp_path, content), SIZE), SIZE)
        colour = [0.6 * part for part in colorsys.hsv_to_rgb(number / 18, 1, 1)]
        assert drawn[64, 48] == pytest.approx(colour, abs=1e-5)
    assert len({frozenset(bone) for bone in BONES}) == 17
    assert {point for bone in BONES for point in bone} == set(range(18))


def test_the_legs_of_25_points_are_those_of_18(tmp_path):
    """Point 8 of 25 is the middle of the hips, which COCO has not."""
    legs = {9: (20, 30), 10: (30, 80), 11: (40, 120)}
    more = {"canvas_width": 96, "canvas_height": 128}
    twenty_five = written(tmp_path, {**more, "people": [{"pose_keypoints_2d": body({**legs, 8: (90, 90)}, 25)}]})
    drawn = draw_pose(read_pose(twenty_five, SIZE), SIZE)
    eighteen = written(tmp_path, {**more, "people": [{"pose_keypoints_2d": body({k - 1: v for k, v in legs.items()})}]})
    assert np.array_equal(drawn, draw_pose(read_pose(eighteen, SIZE), SIZE))


def test_the_frame_may_be_told(tmp_path):
    content = {"people": [{"pose_keypoints_2d": body(ARM)}]}
    path = written(tmp_path, content)
    with pytest.raises(SettingsError, match="--control-size"):
        read_pose(path, SIZE)
    drawn = draw_pose(read_pose(path, SIZE, Size(256, 192)), SIZE)
    assert drawn[15, 10] == pytest.approx((1, 2 / 3, 0), abs=1e-5)


def test_points_that_were_not_seen_are_not_drawn(tmp_path):
    points = body(ARM)
    points[3 * 3 + 2] = 0.01  # the elbow
    drawn = draw_pose(
        read_pose(
            written(tmp_path, {"canvas_width": 96, "canvas_height": 128, "people": [{"pose_keypoints_2d": points}]}),
            SIZE,
        ),
        SIZE,
    )
    assert drawn[30, 20].any()
    assert not drawn[30, 40].any()
    assert not drawn[30, 60].any()


def test_hands_and_faces_are_drawn(tmp_path):
    hand = [value for joint in range(21) for value in (20 + 2 * joint, 100, 0.8)]
    face = [50, 20, 0.9, 70, 20, 0.9]
    person = {"pose_keypoints_2d": None, "hand_left_keypoints_2d": hand, "face_keypoints_2d": face}
    content = {"canvas_width": 96, "canvas_height": 128, "people": [person]}
    drawn = draw_pose(read_pose(written(tmp_path, content), SIZE), SIZE)
    assert drawn[100, 20] == pytest.approx((0, 0, 1), abs=0.3)
    assert drawn[20, 50] == pytest.approx((1, 1, 1), abs=0.3)


def test_bones_are_as_thick_as_the_picture_is_large(tmp_path):
    content = {"people": [{"pose_keypoints_2d": body({2: (0.2, 0.5), 3: (0.8, 0.5)})}]}
    path = written(tmp_path, content)
    widths = []
    for side in (256, 512):
        size = Size(side, side)
        widths.append((draw_pose(read_pose(path, size), size)[:, side // 2].max(axis=1) > 0.3).sum())
    assert widths[1] == pytest.approx(8, abs=1)
    assert widths[1] == pytest.approx(2 * widths[0], abs=1)


def test_points_far_outside_and_nobody_at_all_draw_nothing(tmp_path):
    far = {
        "canvas_width": 96,
        "canvas_height": 128,
        "people": [{"pose_keypoints_2d": body({2: (-900, 30), 3: (5000, 9e9)})}],
    }
    assert not draw_pose(read_pose(written(tmp_path, {"people": []}), SIZE), SIZE).any()
    draw_pose(read_pose(written(tmp_path, {**far, "people": []}), SIZE), SIZE)
    people = read_pose(written(tmp_path, far), SIZE)
    assert np.isfinite(draw_pose(people, SIZE)).all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"people": 3}',
        '{"people": [{"pose_keypoints_2d": [1, 2]}]}',
        '{"people": [{"pose_keypoints_2d": ["a", "b", "c"]}]}',
        '{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}',
        '{"people": [{"pose_keypoints_2d": [NaN' + ", 1" * 53 + "]}]}",
        "[" * 5000,
    ],
)
def test_what_is_no_pose_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "pose.json"
    path.write_text(text)
    with pytest.raises(PictureError) as caught:
        read_pose(path, SIZE)
    assert "pose.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_picture_are_refused(tmp_path):
    with pytest.raises(PictureError, match="cannot read"):
        read_pose(tmp_path / "none.json", SIZE)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(PictureError, match="no JSON"):
        read_pose(tmp_path / "a.png", SIZE)
