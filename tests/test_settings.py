"""Settings: what is refused, with which words, and that a record survives JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enlarger.engines.catalog import find, listings, setting_names
from enlarger.engines.settings import InterpolateSettings, PocketSettings
from enlarger.errors import SettingsError
from enlarger.settings import MAX_SEED, Machine, SeededSettings, build, check, rules, setting, to_json
from enlarger.size import Size


def pocket(**values):
    return build(PocketSettings, values, owner="engine pocket", known=setting_names())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"promt": "x"}, "promt"),
        ({"sede": 1}, "did you mean seed"),
        ({"num_inference_steps": 4}, "here it is called steps"),
        ({"denoising_strength": 0.4}, "here it is called strength"),
        ({"cfg_scale": 4}, "here it is called guidance_scale"),
        ({"outscale": 4}, "here it is called scale"),
        ({"filter": "lanczos"}, "engine pocket has no setting filter"),
        ({"steps": 3}, "1, 2, 4"),
        ({"steps": True}, "whole number"),
        ({"steps": 2.5}, "whole number"),
        ({"fidelity": 1.2}, "0 to 1"),
        ({"fidelity": float("nan")}, "0 to 1"),
        ({"fidelity": "much"}, "a number"),
        ({"scale": 0}, "1 to 16"),
        ({"scale": float("inf")}, "1 to 16"),
        ({"scale": 17}, "1 to 16"),
        ({"seed": -1}, str(MAX_SEED)),
        ({"seed": 2**63}, str(MAX_SEED)),
        ({"size": "12"}, "1800x512"),
        ({"size": (3, 4)}, "1800x512"),
        ({"scale": 2, "size": "10x10"}, "--scale and --size"),
        ({"tile": 7}, "16"),
        ({"preset": "balancd"}, "did you mean balanced"),
    ],
)
def test_wrong_settings_are_refused_with_what_would_be_right(values, words):
    with pytest.raises(SettingsError) as error:
        pocket(**values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_none_means_not_given():
    assert pocket(scale=None, seed=None) == pocket()


def test_a_preset_lies_under_what_is_given():
    faithful = PocketSettings.presets["faithful"]
    assert pocket(preset="faithful").fidelity == faithful["fidelity"]
    assert pocket(preset="faithful", fidelity=0.25).fidelity == 0.25
    assert pocket(preset="faithful", fidelity=0.25).steps == faithful["steps"]


def test_presets_only_name_settings_that_are_there_and_in_range():
    for listing in listings().values():
        record = listing.facts.settings
        for preset in record.presets:
            build(record, {"preset": preset}, owner="x")


def test_random_seed_is_drawn_and_is_a_number():
    drawn = {pocket(seed="random").seed for _ in range(4)}
    assert len(drawn) > 1
    assert all(0 <= seed <= MAX_SEED for seed in drawn)


@given(
    st.builds(
        PocketSettings,
        scale=st.one_of(st.none(), st.floats(1, 16)),
        steps=st.sampled_from([1, 2, 4]),
        seed=st.integers(0, MAX_SEED),
        fidelity=st.floats(0, 1),
    )
)
def test_json_gives_the_same_record_back(record):
    assert pocket(**json.loads(json.dumps(to_json(record)))) == record


def test_a_size_survives_json():
    record = pocket(size="1800x512")
    assert record.size == Size(512, 1800)
    assert pocket(**json.loads(json.dumps(to_json(record)))) == record


def test_every_setting_of_every_engine_is_documented_and_its_default_is_allowed():
    for listing in listings().values():
        for record in (listing.facts.settings, listing.facts.machine):
            for name, rule in rules(record).items():
                assert rule.help.endswith("."), name
                default = getattr(record(), name)
                if default is not None:
                    assert check(name, default, rule) == default


@pytest.mark.parametrize(("text", "value"), [("3GB", 3 * 10**9), ("512MB", 512 * 10**6), ("1.5g", 15 * 10**8)])
def test_memory_sizes(text, value):
    assert build(Machine, {"max_memory": text}, owner="x").max_memory == value


def test_yes_and_no_work_both_ways():
    for text, value in (("yes", True), ("no", False), ("on", True), ("off", False)):
        assert build(InterpolateSettings, {"linear_light": text}, owner="x").linear_light is value
    with pytest.raises(SettingsError, match="yes or no"):
        build(InterpolateSettings, {"linear_light": "maybe"}, owner="x")


def test_a_kind_is_told_from_the_default():
    @dataclass(frozen=True)
    class Toy(SeededSettings):
        share: float = setting(0.5, "A share.", low=0, high=1)

    assert rules(Toy)["share"].kind == "float"
    assert build(Toy, {"share": "0.25"}, owner="toy").share == 0.25


def test_an_unknown_engine_names_the_near_one():
    with pytest.raises(SettingsError, match="did you mean pocket"):
        find("poket")


@dataclass(frozen=True)
class Several:
    """A record with a setting that may be given several times."""

    weights: tuple[float, ...] = setting((), "Weights.", kind="float", low=0, high=2, many=True)
    frame: Size | None = setting(None, "A frame.", kind="size")  # noqa: RUF009


def test_a_setting_may_have_several_values_each_by_the_rule():
    assert build(Several, {"weights": ["0.5", 2]}, owner="x").weights == (0.5, 2.0)
    assert build(Several, {"weights": 1}, owner="x").weights == (1.0,)
    with pytest.raises(SettingsError, match=r"weights 3\.0 is out of range: 0 to 2"):
        build(Several, {"weights": (1, 3)}, owner="x")
    record = build(Several, {"weights": (0.5, 1), "frame": "30x20"}, owner="x")
    stored = json.loads(json.dumps(to_json(record)))
    assert stored == {"weights": [0.5, 1.0], "frame": "30x20"}
    assert build(Several, stored, owner="x") == record


@dataclass(frozen=True)
class WithFile:
    """A record with files."""

    map: tuple[str, ...] = setting((), "Maps.", kind="file", many=True)
    one: str | None = setting(None, "One.", kind="file")


def test_a_file_is_recorded_by_its_name_and_what_it_holds(tmp_path):
    path = tmp_path / "private folder" / "edges.png"
    path.parent.mkdir()
    path.write_bytes(b"one")
    first = to_json(build(WithFile, {"map": [path], "one": str(path)}, owner="x"))
    assert first["map"] == [first["one"]]
    assert first["one"].startswith("edges.png (")
    assert "private" not in json.dumps(first)
    path.write_bytes(b"two")
    assert to_json(build(WithFile, {"one": path}, owner="x"))["one"] != first["one"]
    missing = to_json(build(WithFile, {"one": tmp_path / "none.png"}, owner="x"))
    assert missing == {"map": [], "one": "none.png"}
    with pytest.raises(SettingsError, match="is no file"):
        build(WithFile, {"one": " "}, owner="x")
    with pytest.raises(SettingsError, match="the path of a file"):
        build(WithFile, {"one": 3}, owner="x")
