"""Flags are made from the engines' declarations: none is missing, none says something else."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest

from enlarger.cli import upscale
from enlarger.cli.main import main
from enlarger.cli.options import _add_flag, _Use, split
from enlarger.cli.parser import Parser, parse
from enlarger.engines.catalog import listings
from enlarger.errors import SettingsError
from enlarger.settings import FOREIGN, MAX_SEED, Rule, allowed, defaults, flag, rules
from enlarger.size import Size

EVERY = [
    (name, record, setting, rule)
    for name, listing in listings().items()
    for record in (listing.facts.settings, listing.facts.machine)
    for setting, rule in rules(record).items()
]
IDS = [f"{engine}-{setting}" for engine, _, setting, _ in EVERY]


@pytest.fixture(scope="module")
def parser() -> Parser:
    made = Parser(prog="enlarger upscale")
    upscale.add_arguments(made)
    return made


@pytest.fixture(scope="module")
def help_text(parser: Parser) -> str:
    return re.sub(r"\s+", " ", parser.format_help())


ALONE = {"sample": ("1", 1), "canny_high": ("300", 300.0)}
"""Values of settings whose least one contradicts the default of another."""

COMPANY = {
    "canny_low": ["--control-map", "canny"],
    "canny_high": ["--control-map", "canny"],
    "control_size": ["--control-image", "pose.json"],
}
"""Words without which a setting is refused, since it would change nothing."""


def values(name: str, rule: Rule) -> list[tuple[str, Any]]:
    """Texts that a setting's rule allows, with what they mean."""
    if name in ALONE:
        return [ALONE[name]]
    if rule.choices:
        return [(str(choice), choice) for choice in rule.choices]
    if rule.kind == "text":
        text = {"scheduler": "DDIM", "region": "0,0,512,300:a cloudy sky"}.get(name, "cpu")
        return [(text, rule.convert(text) if rule.convert else text)]
    low = rule.low if rule.low is not None else (rule.above or 0) + 1
    return {
        "int": [(str(int(low)), int(low)), (str(int(low) + 1), int(low) + 1)],
        "float": [(str(low), float(low)), (f"{low:.3e}", float(low)), (f"{low}", float(low))],
        "size": [("300x200", Size(200, 300)), ("300×200", Size(200, 300))],
        "file": [("net.png", "net.png")],
        "seed": [("0", 0), (str(MAX_SEED), MAX_SEED)],
        "bytes": [("3GB", 3_000_000_000), ("500m", 500_000_000), ("7", 7)],
    }[rule.kind]


@pytest.mark.parametrize(("engine", "record", "name", "rule"), EVERY, ids=IDS)
def test_each_setting_is_a_flag_that_reaches_its_record(
    parser: Parser, engine: str, record: type, name: str, rule: Rule
) -> None:
    if rule.kind == "bool":
        cases: list[tuple[list[str], Any]] = [([flag(name)], True), (["--no-" + flag(name)[2:]], False)]
    else:
        cases = [([flag(name), text], value) for text, value in values(name, rule)]
        cases += [([f"{flag(name)}={text}"], value) for text, value in values(name, rule)[:1]]
        cases += [([short, text], value) for short in rule.flags for text, value in values(name, rule)[:1]]
        cases += [([short + text], value) for short in rule.flags for text, value in values(name, rule)[:1]]
    for words, value in cases:
        args = parse(parser, ["a.png", *COMPANY.get(name, ()), *words])
        value = (value,) if rule.many else value
        _, run, made, machine = split(engine, args.settings)
        given = {**run, **machine}
        assert given.pop(name) == value
        assert len(given) == len(COMPANY.get(name, ())) // 2
        if name in run:
            assert getattr(made, name) == value


@pytest.mark.parametrize(("engine", "record", "name", "rule"), EVERY, ids=IDS)
def test_help_says_meaning_range_and_default(help_text: str, engine: str, record: type, name: str, rule: Rule) -> None:
    entry = re.split(rf" {flag(name)} (?=[A-Z])|(?<=, ){flag(name)} (?=[A-Z])| {flag(name)}, ", help_text)[1][:1200]
    assert re.sub(r"\s+", " ", rule.help.removesuffix(".")) in entry
    default = defaults(record)[name]
    if default not in (None, False) and str(default) not in rule.help:
        assert re.search(rf"default {default:,}\b" if isinstance(default, int) else f"default {default}", entry)
    if rule.kind in ("int", "float") and not rule.choices and (rule.high or 0) < 1e6 and allowed(rule) not in rule.help:
        assert allowed(rule) in entry or f"at least {rule.low:g}" in entry
    for choice in rule.choices:
        assert str(choice) in entry


def test_help_says_which_engines_take_a_setting(help_text: str) -> None:
    assert "only interpolate" in help_text[help_text.index("--filter ") :][:120]
    assert "only pocket" in help_text[help_text.index("--fidelity ") :][:120]
    assert "only" not in help_text[help_text.index("--batch ") :][:100]


def test_help_shows_the_engines_and_examples(help_text: str) -> None:
    for listing in listings().values():
        assert f"{listing.facts.name} {listing.facts.summary}" in help_text
    assert "examples:" in help_text


def test_the_examples_in_the_help_are_right(parser: Parser) -> None:
    lines = [
        line.split("enlarger upscale ")[1] for line in upscale.EXAMPLES.splitlines() if "enlarger upscale " in line
    ]
    assert len(lines) >= 6
    for line in lines:
        args = parse(parser, re.split(r"\s{2,}", line)[0].split())
        upscale.ordered(argparse.Namespace(**{**vars(args), "debug": False}))


def test_the_last_value_of_a_flag_counts(parser: Parser) -> None:
    assert parse(parser, ["a.png", "-s", "2", "--scale", "3"]).settings == {"scale": "3"}
    assert parse(parser, ["a.png"]).settings == {}


def test_a_flag_of_many_values_is_repeated() -> None:
    parser = argparse.ArgumentParser()
    parser.set_defaults(settings={})
    rule = Rule("text", "Words.", many=True)
    _add_flag(parser.add_argument_group(""), "word", [_Use("", rule, ())])
    assert parser.parse_args(["--word", "a", "--word", "b"]).settings == {"word": ("a", "b")}


def test_every_word_of_other_tools_is_refused_with_ours(parser: Parser) -> None:
    mine = {option for option in parser._option_string_actions if option.startswith("--")}
    for word, ours in FOREIGN.items():
        for form in (f"--{word}", flag(word)):
            if form in mine:
                continue
            with pytest.raises(SettingsError, match=re.escape(flag(ours))) as refused:
                parse(parser, ["a.png", form, "1"])
            assert form in str(refused.value)


@pytest.mark.parametrize("cut", range(1, 4))
def test_every_flag_with_a_letter_missing_is_refused_with_the_flag_meant(parser: Parser, cut: int) -> None:
    """No abbreviation is taken for the whole, and a slip finds its flag."""
    mine = [option for option in parser._option_string_actions if option.startswith("--")]
    for option in mine:
        slip = option[: len(option) - cut] + option[len(option) - cut + 1 :]
        if slip in mine or len(option) < 8:
            continue
        with pytest.raises(SettingsError, match="did you mean --") as refused:
            parse(parser, ["a.png", slip, "1"])
        assert option in str(refused.value)


@pytest.mark.parametrize("words", [["-e", "x4"], ["-ex4"], ["--engine=x4"], ["--engine", "x4"]])
def test_help_with_an_engine_tells_what_that_one_may_be_told(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["upscale", *words, "--help"]) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "--noise-level N" in said
    assert "--fidelity" not in said
    assert "only x4" not in said
    assert "default 9.0" in said


def test_help_without_an_engine_tells_what_the_default_one_may_be_told(capsys: pytest.CaptureFixture) -> None:
    assert main(["upscale", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--fidelity F" in said
    assert "--noise-level N" not in said
    assert main(["upscale", "-e", "x5", "--help"]) == 2
