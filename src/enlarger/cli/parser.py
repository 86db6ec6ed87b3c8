"""argparse as the command needs it: errors as exceptions, hints for words it does not know, options anywhere."""

from __future__ import annotations

import argparse
import difflib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from enlarger.errors import SettingsError
from enlarger.settings import FOREIGN, flag

OF_OTHER_ENGINES = (
    "cfw", "cfw_weight", "color_fix", "control", "control_end", "control_image", "control_scale", "control_start",
    "embedding", "eta", "guidance_rescale", "guidance_scale", "lora", "negative_prompt", "noise_level", "overlap",
    "prompt", "samples", "scheduler", "spacing", "strength", "vae",
)  # fmt: skip
"""Settings that Enlarger has names for; which of them are flags depends on the engines that are here."""


class Stop(Exception):
    """Help or the version was shown; nothing more to do."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with room for our longer flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(100, shutil.get_terminal_size().columns - 2))


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of exiting, so that all errors end in one place.

    Attributes:
        narrow: Leaves in the help what one engine takes, named by `--engine`; None for commands without it.
    """

    narrow: Callable[[str | None], None] | None = None

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", Formatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line: argparse's words and where to look."""
        raise SettingsError(f"{message} (see {self.prog} --help)")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Stop after help or version."""
        raise Stop(status)


def parse(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """Parse a subcommand's arguments; options and inputs may stand in any order, `--` ends the options.

    Raises:
        SettingsError: An unknown option (names the near one, or ours for another tool's), a missing value.
        Stop: Help was shown.
    """
    if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
        args, extras = parser.parse_known_args(arguments)
        if extras:
            raise SettingsError(_refusal(extras[0], parser) if extras[0].startswith("-") else _too_many(extras[0]))
        return args
    options, inputs = _sorted_out(parser, arguments)
    if "-h" in options or "--help" in options:
        if parser.narrow is not None:
            parser.narrow(_value_of(("-e", "--engine"), options))
        return parser.parse_args(["--help"])
    args, extras = parser.parse_known_args([*options, "--", *inputs] if inputs else options)
    if extras:
        raise SettingsError(_too_many(next(word for word in extras if word != "--")))
    return args


def _value_of(names: tuple[str, ...], options: list[str]) -> str | None:
    """The last value given to an option, as one word with it or as the next one."""
    found = None
    for word, following in zip(options, [*options[1:], ""], strict=True):
        for name in names:
            if word == name:
                found = following
            elif word.startswith(name) and not (name.startswith("--") and word[len(name)] != "="):
                found = word.removeprefix(name).removeprefix("=")
    return found


def _too_many(word: str) -> str:
    return f"{word!r} is one word too many: put words that belong together in quotes"


def _sorted_out(parser: Parser, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options with their values, each as one word where it is one value, and everything else.

    Done here because argparse takes `-inf` or a prompt that starts with a dash for an option, and inputs
    that follow an option for a mistake.
    """
    actions = parser._option_string_actions
    options: list[str] = []
    inputs: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            inputs += words
        elif word == "-" or not word.startswith("-"):
            inputs.append(word)
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            if name not in actions:
                raise SettingsError(_refusal(name, parser))
            if equals and actions[name].nargs == 0:
                raise SettingsError(f"{name} takes no value, not {value!r}")
            alone = equals or actions[name].nargs == "?"  # an optional value stands behind an equals sign only
            options += [word] if alone else _with_values(name, actions, words)
        else:
            name, value = word[:2], word[2:].removeprefix("=")
            if name not in actions or (value and _long_name(word, actions)):
                raise SettingsError(_refusal(word, parser))
            if value and actions[name].nargs == 0:
                raise SettingsError(f"{name} takes no value, not {value!r}")
            options += [f"{name}{value}"] if value else _with_values(name, actions, words)
    return options, inputs


def _with_values(name: str, actions: dict[str, argparse.Action], words: Iterator[str]) -> list[str]:
    """The option with the values that follow it."""
    action = actions[name]
    count = action.nargs if isinstance(action.nargs, int) else 1
    values = []
    for _ in range(count):
        value = next(words, None)
        if value is None or value.partition("=")[0] in actions:
            followed = "nothing follows" if value is None else f"{value} follows"
            names = action.metavar or action.dest.upper()
            wanted = names if isinstance(names, str) else " ".join(names)
            raise SettingsError(f"{name} needs a value ({wanted}), but {followed}")
        values.append(value)
    if len(values) == 1:
        return [f"{name}={values[0]}" if name.startswith("--") else f"{name}{values[0]}"]
    return [name, *values]


def _long_name(word: str, actions: dict[str, argparse.Action]) -> bool:
    """Whether `-scale` was meant as `--scale`."""
    return "-" + word.partition("=")[0] in actions


def _refusal(word: str, parser: Parser) -> str:
    """The line that refuses an option nobody knows."""
    word = word.partition("=")[0]
    plain = word.lstrip("-").replace("-", "_").lower()
    own = {name.lstrip("-").replace("-", "_"): name for name in _flags(parser) if name.startswith("--")}
    others = OF_OTHER_ENGINES if "scale" in own else ()
    ours = {**{name: flag(name) for name in others}, **own}
    foreign = {name: meant for name, meant in FOREIGN.items() if meant in ours}
    if plain in own:
        return f"unknown option {word}: did you mean {own[plain]}?"
    if plain in ours or (word == "-p" and "prompt" in ours):
        return f"unknown option {word}: no engine that is here has such a setting"
    if plain in foreign:
        return f"unknown option {word}: here it is called {ours[foreign[plain]]}{_nobodys(foreign[plain], own)}"
    if plain == "size" and {"width", "height"} <= set(own):
        return f"unknown option {word}: here it is --width and --height"
    near = difflib.get_close_matches(plain, [*ours, *foreign], n=1, cutoff=0.7)
    if not near:
        return f"unknown option {word} (see {parser.prog} --help)"
    name = foreign.get(near[0], near[0])
    return f"unknown option {word}: did you mean {ours[name]}?{_nobodys(name, own)}"


def _nobodys(name: str, own: Mapping[str, str]) -> str:
    return "" if name in own else " (no engine that is here has it)"


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    found = list(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found += _flags(child)
    return found
