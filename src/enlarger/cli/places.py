"""Which pictures to enlarge, and where each result goes: decided before any work, with no picture decoded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enlarger.errors import EnlargerError, OutputError, PictureError, SettingsError
from enlarger.picture.sniff import EXTENSIONS, sniff

ENDINGS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "tif": "TIFF", "tiff": "TIFF"}
"""Endings of results -> the format they mean."""

MADE_BY_US = re.compile(r"_(\d+(\.\d+)?x|\d+x\d+|\d+px|\d+(\.\d+)?mp)$")
"""The end of a result's name, see `suffix`."""


@dataclass(frozen=True)
class Job:
    """One picture to enlarge.

    Attributes:
        source: Its file; None for standard input.
        output: Where the result goes; None for standard output.
        error: What is known to be wrong with it already.
    """

    source: Path | None
    output: Path | None
    error: EnlargerError | None = None

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


def plan(inputs: list[str], output: str | None, format: str | None, ending: str, *, overwrite: bool) -> list[Job]:
    """All the work of a command line.

    Args:
        inputs: Files, folders and "-" as given.
        output: What -o says: a file, a folder, "-" or nothing.
        format: What --format says.
        ending: See `suffix`.
        overwrite: Whether results may replace files.

    Returns:
        The jobs; one that cannot be done carries its error.

    Raises:
        SettingsError: The wishes contradict each other.
        PictureError: A folder without pictures.
        OutputError: The folder for the results is not there.
    """
    if len(inputs) > 1 and inputs.count("-"):
        raise SettingsError("'-' (standard input) cannot stand beside other inputs")
    if format and output and output != "-" and not _means_folder(output) and Path(output).suffix:
        _same_format(output, format)
    pictures = list(_pictures(inputs, ending))
    folders = [Path(word) for word in inputs if word != "-" and os.path.isdir(word)]
    if output == "-" or (output is None and inputs == ["-"]):
        return [_to_standard_output(pictures, folders, format)]
    jobs = [_job(source, root, output, format, ending, folders, overwrite) for source, root in pictures]
    _refuse_shared_outputs(jobs, output)
    if output is not None and folders:
        _make_folders(Path(output), jobs)
    return jobs


def _pictures(inputs: Iterable[str], ending: str) -> Iterator[tuple[Path | None, Path | None]]:
    """Each picture with the folder it was found in, None for those given by name."""
    for word in inputs:
        if word == "-":
            yield None, None
        elif os.path.isdir(word):
            found = list(_in_folder(Path(word)))
            if not found:
                raise PictureError(f"the folder {word} holds no pictures", "missing")
            yield from ((source, Path(word)) for source in found)
        else:
            yield Path(word), None


def _in_folder(folder: Path) -> Iterator[Path]:
    """Pictures in a folder and the folders in it, sorted; no hidden ones, none that we made from their neighbours."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        stems = {Path(name).stem for name in names}
        for name in sorted(names):
            made = MADE_BY_US.search(Path(name).stem)
            ours = made is not None and Path(name).stem[: made.start()] in stems
            if not name.startswith(".") and not ours and _is_picture(Path(place, name)):
                yield Path(place, name)


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


def _to_standard_output(
    pictures: list[tuple[Path | None, Path | None]], folders: list[Path], format: str | None
) -> Job:
    if len(pictures) > 1 or folders:
        raise SettingsError("'-o -' (standard output) takes one picture only")
    if format is None:
        raise SettingsError("standard output needs --format: its name says none; try --format png")
    return Job(pictures[0][0], None)


def _job(
    source: Path | None,
    root: Path | None,
    output: str | None,
    format: str | None,
    ending: str,
    folders: list[Path],
    overwrite: bool,
) -> Job:
    if output is not None and not _means_folder(output) and not folders:
        target = Path(output)
        if target.suffix.lower().lstrip(".") not in ENDINGS and (format is None or target.suffix):
            raise SettingsError(f"{output} names no format: end it in .{', .'.join(ENDINGS)}, or add --format")
    else:
        target = _named(source, root, output, format, ending)
    return Job(source, target, _wrong(source, target, overwrite=overwrite, will_exist=bool(folders and output)))


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
    """The result has the input's format, where we can write it; otherwise PNG."""
    own = source.suffix.lstrip(".")
    content = _content(source) or ENDINGS.get(own.lower())
    if content is not None and ENDINGS.get(own.lower()) == content:
        return own
    usual = {meant: ending for ending, meant in reversed(ENDINGS.items())}
    return usual.get(content or "", "png")


def _wrong(source: Path | None, target: Path, *, overwrite: bool, will_exist: bool) -> EnlargerError | None:
    """What keeps the result from being written, as far as names tell."""
    if source is not None and source.exists() and target.exists() and os.path.samefile(source, target):
        return OutputError(f"{target} is the input itself; name another output with -o")
    if target.is_dir():
        return OutputError(f"{target} is a folder")
    if os.path.lexists(target) and not overwrite:
        return OutputError(f"{target} exists already; --overwrite replaces it, -o names another")
    if not target.parent.is_dir() and not will_exist:
        return OutputError(f"the folder {target.parent} does not exist; make it first")
    if target.parent.is_dir() and not os.access(target.parent, os.W_OK | os.X_OK):
        return OutputError(f"the folder {target.parent} cannot be written to")
    return None


def _refuse_shared_outputs(jobs: list[Job], output: str | None) -> None:
    """Two results in one file would lose one of them."""
    taken: dict[str, Job] = {}
    for job in jobs:
        key = os.path.normcase(os.path.abspath(job.output or ""))
        if key in taken:
            other = taken[key]
            if output is not None and not _means_folder(output):
                raise SettingsError(f"{len(jobs)} inputs but one output file {output}; -o takes a folder for several")
            raise SettingsError(
                f"{other.name} and {job.name} would both become {job.output}; "
                "enlarge them one by one with -o, or into different folders"
            )
        taken[key] = job


def _make_folders(output: Path, jobs: list[Job]) -> None:
    """The folder for a folder's results, and those in it; its own parent must be there."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file, but the results of a folder need a folder")
    if not output.resolve().parent.is_dir():
        raise OutputError(f"the folder {output.parent} does not exist; make it first")
    for job in jobs:
        if job.output is not None and job.error is None:
            job.output.parent.mkdir(parents=True, exist_ok=True)


def _means_folder(output: str) -> bool:
    return output.endswith(("/", os.sep)) or os.path.isdir(output)


def _same_format(output: str, format: str) -> None:
    ending = Path(output).suffix.lower().lstrip(".")
    if ENDINGS.get(ending) != ENDINGS[format]:
        raise SettingsError(f"{output} and --format {format} contradict each other: leave one of them out")
