"""Which pictures to enlarge, and where each result goes: decided before any work, with no picture decoded."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from enlarger.errors import OutputError, PictureError, SettingsError
from enlarger.picture.formats import CAPACITIES, format_of, named
from enlarger.picture.sniff import EXTENSIONS, sniff

FORMATS = tuple(sorted({*(EXTENSIONS[name][0] for name in CAPACITIES), *(name.lower() for name in CAPACITIES)}))
"""Words for the formats that can be written."""

MADE_BY_US = re.compile(r"_(\d+(\.\d+)?x|\d+x\d+|\d+px|\d+(\.\d+)?mp)(_\d+)?$")
"""The end of a result's name, see `suffix`, with the number of a sample."""

OF_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini"}
"""Files that Windows leaves in folders of pictures; those of other systems are hidden."""


@dataclass(frozen=True)
class Job:
    """One picture to enlarge.

    Attributes:
        source: Its file; None for standard input.
        output: Where the result goes; None for standard output.
        listed: Whether it was found in a folder, not named.
        makes_folder: Whether the result's folder is made for it, being below the one that -o names.
        sample: Which of several results of this picture, counted from 1; None where there is one.
    """

    source: Path | None
    output: Path | None
    listed: bool = False
    makes_folder: bool = False
    sample: int | None = None

    @property
    def whole(self) -> Path | None:
        """The result's path without the number of the sample: what all samples of the picture share."""
        if self.sample is None or self.output is None:
            return self.output
        return self.output.with_stem(self.output.stem.removesuffix(f"_{self.sample}"))

    @property
    def name(self) -> str:
        """How to call it in messages."""
        return "standard input" if self.source is None else str(self.source)


def suffix(settings: Mapping[str, Any], default_scale: float) -> str:
    """What a result's name has after the input's: `_4x`, `_2.5x`, `_1800x512`, `_2000px` or `_8mp`."""
    if settings.get("size") is not None:
        return f"_{settings['size']}"
    if settings.get("longest") is not None:
        return f"_{settings['longest']}px"
    if settings.get("megapixels") is not None:
        return f"_{settings['megapixels']:g}mp"
    return f"_{settings.get('scale') or default_scale:g}x"


def plan(inputs: list[str], output: str | None, format: str | None, ending: str, samples: int = 1) -> list[Job]:
    """All the work of a command line.

    Args:
        inputs: Files, folders and "-" as given.
        output: What -o says: a file, a folder, "-" or nothing.
        format: What --format says.
        ending: See `suffix`.
        samples: Results for each picture: above 1 their names end in _1, _2 and so on.

    Raises:
        SettingsError: The wishes contradict each other.
        PictureError: An empty name, a folder without pictures, or one that may not be read.
        OutputError: The folder for the results is not there.
    """
    if "" in inputs:
        raise PictureError("an input has an empty name; give the name of a picture", "missing")
    if len(inputs) > 1 and "-" in inputs:
        raise SettingsError("'-' (standard input) cannot stand beside other inputs")
    from_folder = any(word != "-" and os.path.isdir(word) for word in inputs)
    if output == "-" or (output is None and inputs == ["-"]):
        if len(inputs) > 1 or from_folder:
            raise SettingsError("'-o -' (standard output) takes one picture only")
        if samples > 1:
            raise SettingsError(f"{samples} samples cannot go to standard output: name a file with -o, or --sample N")
        if format is None:
            raise SettingsError("standard output needs --format, since it has no name: try --format png")
        return [Job(None if inputs == ["-"] else Path(inputs[0]), None)]
    into_folder = output is not None and (from_folder or _means_folder(output))
    if output is not None and into_folder:
        _check_folder(Path(output), may_be_made=from_folder)
    elif output is not None:
        _check_name(output, format)
        if len(inputs) > 1:
            raise SettingsError(f"{len(inputs)} inputs but one output file {output}: several need a folder after -o")
    jobs = []
    for source, root in _pictures(inputs, Path(output) if into_folder and output else None):
        named = into_folder or output is None
        target = _named(source, root, output, format, ending) if named else Path(output or "")
        job = Job(source, target, listed=root is not None, makes_folder=into_folder and from_folder)
        jobs += (
            [job]
            if samples == 1
            else [
                replace(job, output=target.with_stem(f"{target.stem}_{number}"), sample=number)
                for number in range(1, samples + 1)
            ]
        )
    _refuse_losses(jobs)
    return jobs


def _pictures(inputs: Iterable[str], results: Path | None) -> Iterator[tuple[Path | None, Path | None]]:
    """Each picture with the folder it was found in, None for those given by name."""
    for word in inputs:
        if word == "-":
            yield None, None
        elif os.path.isdir(word):
            none = True
            for source in walk(Path(word), results):
                none = False
                yield source, Path(word)
            if none:
                raise PictureError(f"the folder {word} holds no pictures", "missing")
        else:
            yield Path(word), None


def walk(folder: Path, results: Path | None = None) -> Iterator[Path]:
    """Pictures in a folder and the folders in it, in the order of their names; a folder's own before those below it.

    Left alone are hidden files, what is no picture, and results that the name says were made from a neighbour. Folders
    that links lead to are entered, but each folder once, so that a link that leads round ends.

    Args:
        folder: Where to look.
        results: Where the results go: not looked into where it lies below `folder`.

    Raises:
        PictureError: A folder may not be read.
    """
    seen = {_identity(results)} if results is not None and _identity(results) != _identity(folder) else set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        identity = _identity(place)
        if identity in seen:
            continue
        seen.add(identity)
        try:
            with os.scandir(place) as entries:
                found = sorted((entry.name, _leads_to_folder(entry)) for entry in entries if entry.name[0] != ".")
        except OSError as error:
            reason = (error.strerror or "it cannot be read").lower()
            raise PictureError(f"the folder {place} cannot be read: {reason}; leave it out", "missing") from error
        waiting.extend(Path(place, name) for name, is_folder in reversed(found) if is_folder)
        stems = {Path(name).stem for name, is_folder in found if not is_folder}
        for name, is_folder in found:
            made = MADE_BY_US.search(Path(name).stem)
            ours = made is not None and Path(name).stem[: made.start()] in stems
            if not is_folder and not ours and name.lower() not in OF_SYSTEMS and _is_picture(Path(place, name)):
                yield Path(place, name)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder apart, whatever leads to it; None when it is not there."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_picture(path: Path) -> bool:
    """Whether a file in a folder is meant: its name says so, or its content does."""
    if path.suffix.lower().lstrip(".") in {ending for endings in EXTENSIONS.values() for ending in endings}:
        return True
    return _content(path) is not None


def _content(path: Path) -> str | None:
    """The format that the first bytes say."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(1024)
        return sniff(head, path.stat().st_size, path.name)
    except (OSError, PictureError):
        return None


def _named(source: Path | None, root: Path | None, output: str | None, format: str | None, ending: str) -> Path:
    """The result's name made from the input's; the tree below a folder is kept."""
    if source is None:
        if format is None:
            raise SettingsError("standard input has no name: give --format, or a file with -o")
        return Path(output or ".", f"picture{ending}.{format}")
    name = f"{source.stem}{ending}.{format or _ending_for(source)}"
    if output is None:
        return source.with_name(name)
    return Path(output, source.parent.relative_to(root) if root else "", name)


def _ending_for(source: Path) -> str:
    """The result has the input's format, where that can be written; otherwise it is PNG."""
    content = _content(source) or format_of(source.name)
    if content is not None and content == format_of(source.name) and content in CAPACITIES:
        return source.suffix.removeprefix(".")
    return EXTENSIONS[content][0] if content in CAPACITIES else "png"


def _check_folder(folder: Path, *, may_be_made: bool) -> None:
    """The folder for results; for those of a folder it is made if only itself is missing."""
    if folder.is_dir():
        return
    if folder.exists():
        raise OutputError(f"{folder} is a file, but the results of a folder need a folder")
    if not may_be_made or not folder.absolute().parent.is_dir():
        raise OutputError(f"the folder {folder if not may_be_made else folder.parent} does not exist; make it first")


def _check_name(output: str, format: str | None) -> None:
    """What the name says of the format."""
    meant, wanted = format_of(output), named(format or "")
    if meant is not None and wanted is not None and meant != wanted:
        raise SettingsError(f"{output} and --format {format} contradict each other: leave one of them out")
    if (meant or wanted) not in CAPACITIES:
        usual = ", ".join(f".{EXTENSIONS[name][0]}" for name in CAPACITIES)
        raise SettingsError(f"{output} names no format that can be written: end it in one of {usual}, or add --format")


def _refuse_losses(jobs: list[Job]) -> None:
    """Two results in one file would lose one of them; a result over another input would lose that."""
    taken: dict[str, Job] = {}
    inputs = {_key(job.source): job for job in jobs if job.source is not None}
    for job in jobs:
        key = _key(job.output or Path())
        if key in taken:
            raise SettingsError(
                f"{taken[key].name} and {job.name} would both become {job.output}: "
                "enlarge them one by one with -o, or into different folders"
            )
        if key in inputs and inputs[key].source != job.source:
            raise SettingsError(
                f"{job.name} would become {job.output}, which is an input too: name another folder with -o"
            )
        taken[key] = job


def _key(path: Path) -> str:
    """The same for names that some disk takes for one: capitals and the ways to write an accent do not count."""
    return unicodedata.normalize("NFC", os.path.abspath(path)).casefold()


def _means_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or os.path.isdir(output)
