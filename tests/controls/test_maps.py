"""Control maps by models that the user names: tiny random ones of transformers' classes, opened from their folders."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from enlarger.controls import people
from enlarger.controls.maps import open_models
from enlarger.controls.people import COCO, OPENPOSE, as_openpose, cut, framed, peaks, places
from enlarger.errors import ModelError, PictureError
from tests.engines import tiny

CPU = torch.device("cpu")
SIZE = (64, 48)
"""Height and width of what the tiny pose model sees."""


def picture(height, width):
    return np.random.default_rng(3).random((height, width, 3), dtype=np.float32)


def pose_config(**changes):
    backbone = tiny.transformers.VitPoseBackboneConfig(
        image_size=SIZE, patch_size=(16, 16), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        out_indices=[2], initializer_range=1.0, **changes.pop("backbone", {}),
    )  # fmt: skip
    return tiny.transformers.VitPoseConfig(
        backbone_config=backbone, **{"num_labels": 17, "initializer_range": 1.0, **changes}
    )


def write_pose(folder, **changes):
    torch.manual_seed(0)
    tiny.transformers.VitPoseForPoseEstimation(pose_config(**changes)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({
            "image_processor_type": "VitPoseImageProcessor", "size": {"height": SIZE[0], "width": SIZE[1]},
            "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25],
        })
    )  # fmt: skip
    return folder


def write_depth(folder):
    torch.manual_seed(0)
    config = tiny.transformers.DPTConfig(
        hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=4,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4, 4, 4, 4], fusion_hidden_size=8, is_hybrid=False,
        initializer_range=1.0,
    )  # fmt: skip
    tiny.transformers.DPTForDepthEstimation(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({
            "image_processor_type": "DPTImageProcessor", "do_resize": True, "size": {"height": 16, "width": 16},
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": False,
        })
    )  # fmt: skip
    return folder


def write_finder(folder, label="person"):
    torch.manual_seed(0)
    config = tiny.transformers.YolosConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=[32, 32],
        patch_size=16, num_detection_tokens=3, id2label={0: label, 1: "cat"}, label2id={label: 0, "cat": 1},
    )  # fmt: skip
    tiny.transformers.YolosForObjectDetection(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "YolosImageProcessor", "size": {"shortest_edge": 32, "longest_edge": 48}})
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("maps")
    return {"pose": write_pose(place / "vitpose"), "people": write_finder(place / "yolos")}


# Poses


def test_a_pose_model_sees_and_is_read_as_transformers_own_processor_does(folders, monkeypatch):
    """Its input to rounding, key points to a third of a cell of its map: theirs are between cells by another rule."""
    pytest.importorskip("scipy", reason="transformers' processor needs scipy")
    processor = tiny.transformers.AutoImageProcessor.from_pretrained(folders["pose"])
    source, box = (picture(90, 70) * 255).round().astype(np.uint8), (10.0, 20.0, 30.0, 50.0)
    given = processor(source, boxes=[[list(box)]], return_tensors="pt")
    rows, columns = np.mgrid[:16, :12]
    centres = np.random.default_rng(5).uniform((1.5, 1.5), (13.5, 9.5), (17, 2))
    heat = np.stack([0.9 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8) for y, x in centres])
    outputs = SimpleNamespace(heatmaps=torch.from_numpy(heat[None].astype(np.float32)))
    found = processor.post_process_pose_estimation(outputs, boxes=[[list(box)]])[0][0]

    maps = open_models([str(folders["pose"])], CPU)
    seen = []
    monkeypatch.setattr(maps.pose._model, "forward", lambda pixels: seen.append(pixels) or outputs)
    monkeypatch.setattr(maps.pose, "_finder", lambda pixels: [box])
    person = maps.pose(source.astype(np.float32) / 255)[0]
    assert float((seen[0] - given["pixel_values"]).abs().max()) < 0.02  # theirs has rounded to bytes in between
    cell = framed(box, SIZE)[2] / (SIZE[1] / 4 - 1)
    for ours, place in enumerate(OPENPOSE):
        if place is not None:
            assert np.abs(person.body[ours, :2] - found["keypoints"][place].numpy()).max() < 0.35 * cell, COCO[place]
            assert person.body[ours, 2] == pytest.approx(float(found["scores"][place]))


def test_each_person_that_a_detector_finds_is_posed_in_its_own_box(folders, monkeypatch):
    maps = open_models([str(folders["people"]), str(folders["pose"])], CPU)
    monkeypatch.setattr(people, "SURE", -100.0)
    monkeypatch.setattr(people, "FOUND", 0.0)
    source = picture(60, 80)
    boxes = maps.pose._finder(source)
    assert 1 <= len(boxes) <= 3  # of three guesses those that are nearer to a person than to a cat
    for left, top, width, height in boxes:
        assert 0 <= left < left + width <= 80
        assert 0 <= top < top + height <= 60
    found = maps.pose(source)
    assert len(found) == len(boxes)
    alone = open_models([str(folders["pose"])], CPU).pose(source)
    assert len(alone) == 1
    assert np.abs(alone[0].body - found[0].body).max() > 0.5
    assert [name for name, _ in maps.names] == ["yolos", "vitpose"]
    assert all(len(digest) == 16 for _, digest in maps.names)


def test_where_nobody_is_the_remedy_is_said(folders, monkeypatch):
    maps = open_models([str(folders["pose"])], CPU)
    monkeypatch.setattr(people, "SURE", 1e9)
    with pytest.raises(PictureError, match=r"no person was found .*--control-image"):
        maps.pose(picture(40, 40))


def test_a_peak_is_where_it_is_to_a_quarter_of_a_cell():
    heat = np.zeros((2, 16, 12), np.float32)
    heat[0, 5, 3], heat[0, 5, 4] = 0.9, 0.4
    heat[1, 0, 11] = 0.7  # in a corner: there is no likelier side
    frame = (100.0, 50.0, 110.0, 150.0)  # ten pixels a cell
    found = peaks(heat, frame)
    assert found[0].tolist() == pytest.approx([132.5, 100, 0.9])
    assert np.abs(found[1] - (210, 50, 0.7)).max() <= 2.5


def test_a_frame_has_the_models_shape_and_room_around_the_person():
    left, top, wide, tall = framed((10, 20, 30, 80), (64, 48))
    assert (wide / tall, tall) == (pytest.approx(0.75), pytest.approx(100))
    assert (left + wide / 2, top + tall / 2) == (pytest.approx(25), pytest.approx(60))
    assert framed((0, 0, 60, 10), (64, 48))[2] == pytest.approx(75)


def test_what_lies_beyond_the_picture_is_black():
    ones = torch.ones(1, 3, 10, 10)
    seen = cut(ones, (-10.0, 0.0, 20.0, 9.0), (4, 5))
    assert seen.shape == (1, 3, 4, 5)
    assert float(seen[..., 0].max()) == 0
    assert float(seen[..., 3].min()) == 1


def test_cocos_points_become_openposes_with_a_neck_between_the_shoulders():
    body = np.stack([np.arange(17), np.arange(17) * 2, np.ones(17)], 1).astype(np.float32)
    made = as_openpose(body)
    assert made.shape == (18, 3)
    assert made[1].tolist() == [5.5, 11, 1]
    assert made[2].tolist() == body[COCO.index("right shoulder")].tolist()
    assert made[13].tolist() == body[COCO.index("left ankle")].tolist()
    assert made[17].tolist() == body[COCO.index("left ear")].tolist()
    body[5, 2] = 0
    assert as_openpose(body)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("write", ["L_Eye", "left_eye", "left-eye", "LeftEye"])
def test_key_points_are_told_by_their_names_in_any_order(write):
    def spelt(name):
        side, _, part = name.rpartition(" ")
        styles = {
            "L_Eye": f"{side[:1].upper()}_{part.title()}" if side else part.title(),
            "left_eye": name.replace(" ", "_"),
            "left-eye": name.replace(" ", "-"),
            "LeftEye": name.title().replace(" ", ""),
        }
        return styles[write]

    labels = {20 - number: spelt(name) for number, name in enumerate(COCO)} | {0: "chin", 1: "L_BigToe"}
    assert places(labels, "a") == ([20 - number for number in range(17)], False)


def test_hands_and_face_come_with_a_whole_body(tmp_path, monkeypatch):
    monkeypatch.setattr(people, "SURE", -100.0)
    person = open_models([str(write_pose(tmp_path / "whole", num_labels=133))], CPU).pose(picture(64, 48))[0]
    assert (person.body.shape, [hand.shape for hand in person.hands]) == ((18, 3), [(21, 3), (21, 3)])
    assert person.face.shape == (68, 3)


def test_a_model_of_several_experts_is_told_which(tmp_path, monkeypatch):
    monkeypatch.setattr(people, "SURE", -100.0)
    folder = write_pose(tmp_path / "plus", backbone={"num_experts": 3, "part_features": 4})
    assert open_models([str(folder)], CPU).pose(picture(64, 48))[0].body[:, 2].any()


# What cannot be used


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no config.json"),
        ("{", "no config.json"),
        ("[]", "no config.json"),
        ('{"architectures": ["CLIPModel"]}', r"CLIPModel, no model for maps.*ForDepthEstimation"),
        ('{"architectures": []}', "of no stated kind|no config.json"),
        ('{"architectures": ["DPTForDepthEstimation"], "model_type": "dpt"}', "cannot be opened"),
        (
            '{"architectures": ["XForDepthEstimation"], "model_type": "x", "auto_map": {"AutoConfig": "evil.X"}}',
            "cannot be opened",
        ),
    ],
)
def test_what_is_no_such_folder_is_refused_and_nothing_in_it_runs(tmp_path, content, said):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nclass X: pass\n")
    with pytest.raises(ModelError, match=said):
        open_models([str(tmp_path)], CPU)
    assert not (tmp_path / "marker").exists()


def test_two_for_one_purpose_and_a_detector_for_none_are_refused(folders):
    with pytest.raises(ModelError, match="both for pose"):
        open_models([str(folders["pose"])] * 2, CPU)
    with pytest.raises(ModelError, match=r"yolos finds people for a pose model.*--map-model"):
        open_models([str(folders["people"])], CPU)


def test_a_detector_without_people_and_points_of_something_else_are_refused(folders, tmp_path):
    with pytest.raises(ModelError, match="none of its labels is 'person'"):
        open_models([str(folders["pose"]), str(write_finder(tmp_path / "dogs", "dog"))], CPU)
    with pytest.raises(ModelError, match="21 key points that are not COCO's"):
        open_models([str(write_pose(tmp_path / "hand", num_labels=21))], CPU)
