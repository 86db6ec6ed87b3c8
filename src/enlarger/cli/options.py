"""Flags made from the engines' declared settings, and the way back to settings.

A setting that several engines have is one flag; its help says which engines take it, and what each allows
where they differ. Nothing is declared here.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enlarger.engines.catalog import Listing, find, listings
from enlarger.errors import SettingsError
from enlarger.settings import Machine, Rule, allowed, build, check, defaults, flag, rules
from enlarger.size import MAX_SIDE

GROUPS = ("Size", "Engine", "Prompt", "Control", "Tiles", "Model", "Machine", "Input", "Output")
"""Headings of `--help`, in order."""


@dataclass(frozen=True)
class _Use:
    """What one record says of a setting."""

    engine: str
    rule: Rule
    default: Any


class _Keep(argparse.Action):
    """Puts a setting's text into `args.settings`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Keep the value; a flag without one is a yes or, with `--no-`, a no."""
        given = getattr(namespace, "settings", None) or {}
        value = values if self.nargs != 0 else not (option_string or "").startswith("--no-")
        namespace.settings = {**given, self.dest: value}


class _Gather(_Keep):
    """Keeps all values of a setting that may be given several times."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add one more."""
        earlier = (getattr(namespace, "settings", None) or {}).get(self.dest, ())
        super().__call__(parser, namespace, (*earlier, values), option_string)


def add_settings(parser: argparse.ArgumentParser, *records: type) -> dict[str, argparse._ArgumentGroup]:
    """Declare a flag for every setting of every engine, of loading one, and of further records.

    Returns:
        The groups of the flags, by their headings.
    """
    parser.set_defaults(settings={})
    uses: dict[str, list[_Use]] = {}
    every = [(facts.name, record) for facts in _all_facts() for record in (facts.settings, facts.machine)]
    for engine, record in [*every, *(("", record) for record in records)]:
        for name, rule in rules(record).items():
            uses.setdefault(name, []).append(_Use(engine, rule, defaults(record).get(name)))
    titles = {rule.group for found in uses.values() for rule in (found[0].rule,)} | {"Output"}
    groups = {title: parser.add_argument_group(title) for title in sorted(titles, key=_place_of_group)}
    for name, found in uses.items():
        _add_flag(groups[found[0].rule.group], name, found)
    return groups


def narrow(parser: argparse.ArgumentParser, engine: str) -> None:
    """Leave in the help what one engine takes, with its own ranges and defaults.

    Raises:
        SettingsError: No such engine.
    """
    facts = find(engine).facts
    of_any = {name for other in _all_facts() for record in (other.settings, other.machine) for name in rules(record)}
    own = {
        name: _Use("", rule, defaults(record).get(name))
        for record in (facts.settings, facts.machine)
        for name, rule in rules(record).items()
    }
    for action in parser._actions:
        if isinstance(action, _Keep) and action.dest in of_any:
            action.help = _help([own[action.dest]]) if action.dest in own else argparse.SUPPRESS


def add_records(
    parser: argparse.ArgumentParser, *records: type, but: Collection[str] = ()
) -> dict[str, argparse._ArgumentGroup]:
    """Declare a flag for every setting of some records alone, for commands that are no engine's.

    Args:
        parser: The command's.
        records: Of settings.
        but: Names that are no flags of the command.
    """
    parser.set_defaults(settings={})
    found = {
        name: _Use("", rule, defaults(record).get(name))
        for record in records
        for name, rule in rules(record).items()
        if name not in but
    }
    titles = {use.rule.group for use in found.values()} | {"Output"}
    groups = {title: parser.add_argument_group(title) for title in sorted(titles, key=_place_of_group)}
    for name, use in found.items():
        _add_flag(groups[use.rule.group], name, [use])
    return groups


def _place_of_group(title: str) -> tuple[int, str]:
    """In the order of `GROUPS`; what a plug-in adds comes last."""
    return GROUPS.index(title) if title in GROUPS else len(GROUPS), title


def split(engine: str, given: Mapping[str, Any]) -> tuple[Listing, dict[str, Any], Any, dict[str, Any]]:
    """The settings that were given, checked.

    Args:
        engine: Its name.
        given: Name -> text, as `add_settings` keeps them; names of further records must be taken out before.

    Returns:
        The engine's listing, the settings given for a run, the record they make, those given for loading.

    Raises:
        SettingsError: No such engine, a value out of range, a setting that is not this engine's.
    """
    listing = find(engine)
    facts = listing.facts
    of_machine = rules(facts.machine)
    for name in given:
        if name not in of_machine and name not in rules(facts.settings):
            raise SettingsError(_not_its(name, engine))
    owner = f"engine {engine}"
    run = {name: text for name, text in given.items() if name not in of_machine}
    load = {name: text for name, text in given.items() if name in of_machine}
    run, record = _built(facts.settings, run, owner)
    load, _ = _built(facts.machine, load, owner)
    return listing, run, record, load


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of loading for commands that name several engines; see `machine_of`."""
    parser.set_defaults(settings={})
    group = parser.add_argument_group("Machine")
    for name, rule in rules(Machine).items():
        _add_flag(group, name, [_Use("", rule, defaults(Machine).get(name))])


def machine_of(engines: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of loading that were given, checked; each engine then takes those that it has.

    Args:
        engines: Names of those that will be loaded.
        given: Name -> text, as `add_machine` keeps them.

    Raises:
        SettingsError: A value out of range, or a setting that none of them has.
    """
    checked = {name: check(name, text, rules(Machine)[name]) for name, text in given.items()}
    for name in checked:
        if not any(name in rules(find(engine).facts.machine) for engine in engines):
            several = " and ".join(dict.fromkeys(engines)) or "finished results"
            raise SettingsError(f"{flag(name)} changes nothing for {several}: leave it out")
    return checked


def take(record: type, given: dict[str, Any]) -> Any:
    """A record's settings, checked and taken out of `given`."""
    names = [name for name in rules(record) if name in given]
    return build(record, {name: given.pop(name) for name in names}, owner="the command")


def _built(record: type, values: Mapping[str, Any], owner: str) -> tuple[dict[str, Any], Any]:
    """The values in their own types, and the record that they make together."""
    checked = {name: check(name, value, rules(record)[name]) for name, value in values.items()}
    return checked, build(record, checked, owner=owner)


def _not_its(name: str, engine: str) -> str:
    who = [facts.name for facts in _all_facts() if name in rules(facts.settings) or name in rules(facts.machine)]
    return f"engine {engine} does not use {flag(name)}: leave it out, or choose {' or '.join(who)} with -e"


def _all_facts() -> list[Any]:
    return [listing.facts for listing in listings().values()]


def _add_flag(group: argparse._ArgumentGroup, name: str, uses: list[_Use]) -> None:
    rule = uses[0].rule
    names = [*rule.flags, flag(name)]
    if rule.kind == "bool":
        names.append("--no-" + flag(name).removeprefix("--"))
        group.add_argument(*names, dest=name, action=_Keep, nargs=0, help=_help(uses))
        return
    metavar = rule.metavar or ("N" if rule.kind == "int" else name.upper())
    group.add_argument(*names, dest=name, action=_Gather if rule.many else _Keep, metavar=metavar, help=_help(uses))


def _help(uses: list[_Use]) -> str:
    """Meaning, which engines take it, range, default: each said once where all engines agree."""
    first = uses[0]
    text = _meaning(uses)
    engines = [facts.name for facts in _all_facts()]
    takers = [use.engine for use in uses if use.engine]
    notes = []
    if len({(_allowed(use), _default(use)) for use in uses}) > 1:
        notes = [f"{use.engine}: {', '.join(filter(None, (_allowed(use), _default(use))))}" for use in uses]
    else:
        if takers and takers != engines:
            notes.append("only " + ", ".join(takers))
        notes += [note for note in (_allowed(first), _default(first)) if note and note not in text]
    return f"{text.removesuffix('.')} [{'; '.join(notes)}].".replace("%", "%%") if notes else text.replace("%", "%%")


def _meaning(uses: list[_Use]) -> str:
    """What the setting means; for engines that mean different things, each one's own words."""
    meanings: dict[str, list[str]] = {}
    for use in uses:
        meanings.setdefault(use.rule.help, []).append(use.engine)
    if len(meanings) == 1:
        return uses[0].rule.help
    return " ".join(f"{', '.join(engines)}: {meaning}" for meaning, engines in meanings.items())


def _allowed(use: _Use) -> str:
    rule = use.rule
    if rule.choices:
        return ", ".join(map(str, rule.choices))
    if rule.kind not in ("int", "float"):
        return ""
    if rule.high is not None and rule.high >= MAX_SIDE:  # beyond it a number was mistyped: no range worth reading
        return f"at least {rule.low:g}" if rule.low is not None else ""
    return allowed(rule)


def _default(use: _Use) -> str:
    if use.default is None or use.default is False or use.default in ("", ()):
        return ""
    return f"default {use.default:,}" if isinstance(use.default, int) else f"default {use.default}"
