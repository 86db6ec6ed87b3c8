"""The benchmark protocols of this field as data: which files, how they were made, how they are measured.

A protocol's folder holds `HR/` and `LRx4/` with files of the same base names; LR is made by nobody here, because
remade small pictures differ from the published ones by several levels. Files are recognised by their SHA-256 where we
know them, so a table can say whether it was made on the files that papers mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from enlarger.errors import SettingsError
from enlarger.evaluation.folders import matching, pictures_in


@dataclass(frozen=True)
class Protocol:
    """How one benchmark is measured.

    Attributes:
        name: as users write it.
        folder: name of its folder in the data directory.
        factor: output pixels per input pixel.
        border: pixels left out on each side by PSNR, SSIM and NIQE.
        complete: pictures of the published set; a part of it is reported as such.
        made: how the small pictures were made.
        origin: who published it.
    """

    name: str
    folder: str
    factor: int
    border: int
    complete: int
    made: str
    origin: str


_MATLAB = "MATLAB imresize bicubic, antialiased"

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("set5", "Set5", 4, 4, 5, _MATLAB, "Bevilacqua et al., BMVC 2012; files of SelfExSR"),
        Protocol("set14", "Set14", 4, 4, 14, _MATLAB, "Zeyde et al. 2010; files of SelfExSR"),
        Protocol("bsd100", "BSD100", 4, 4, 100, _MATLAB, "Martin et al., ICCV 2001; files of SelfExSR"),
        Protocol("urban100", "Urban100", 4, 4, 100, _MATLAB, "Huang et al., CVPR 2015; files of SelfExSR"),
        # Papers of the diffusion line measure the whole 512x512, without a border.
        Protocol(
            "realsr", "RealSR", 4, 0, 100, "photographed with another focal length and aligned; 128x128 crops",
            "Cai et al., ICCV 2019; the crops of StableSR's protocol",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A small picture and the true large one.

    Attributes:
        name: base name of the reference.
        source: the input; None when there is none of that name.
        reference: the truth; None when there is none of that name.
    """

    name: str
    source: Path | None
    reference: Path | None


@dataclass(frozen=True)
class Task:
    """What an evaluation runs on.

    Attributes:
        name: of the protocol, or "pairs".
        border: pixels left out on each side by PSNR, SSIM and NIQE.
        pairs: in order of their names.
        remarks: what a reader of the numbers should know: parts of a set, files that are not the known ones.
    """

    name: str
    border: int
    pairs: tuple[Pair, ...]
    remarks: tuple[str, ...] = ()


def find_protocol(name: str) -> Protocol:
    """The protocol of that name, whatever its capitals.

    Raises:
        SettingsError: there is none.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key not in PROTOCOLS:
        raise SettingsError(f"unknown protocol {name!r}; there are {', '.join(PROTOCOLS)}, or give --pairs HR LR")
    return PROTOCOLS[key]


def paired(references: Path, sources: Path) -> tuple[Pair, ...]:
    """Pictures of two folders by name; what has no partner is a pair with a hole, so that it is not lost silently.

    Names are equal, or the small one's has an ending such as `x4`, `_LR4`, `_small`.

    Raises:
        SettingsError: a folder that is missing or holds no pictures.
    """
    large, small = pictures_in(references), pictures_in(sources)
    pairs = [Pair(name, matching(small, name), path) for name, path in large.items()]
    used = {pair.source for pair in pairs}
    pairs += [Pair(name, path, None) for name, path in small.items() if path not in used]
    return tuple(sorted(pairs, key=lambda pair: pair.name))


def of_protocol(name: str, data: Path) -> Task:
    """The pairs of a protocol.

    Args:
        name: of the protocol.
        data: the folder that holds the protocol's folder, or that folder itself.

    Raises:
        SettingsError: unknown protocol, or its files are not there.
    """
    protocol = find_protocol(name)
    if not data.is_dir():
        raise SettingsError(f"{data}: no such folder; --data names the folder that holds {protocol.folder}/")
    by_name = {path.name.lower(): path for path in data.iterdir() if path.is_dir()}
    folder = by_name.get(protocol.folder.lower(), data)
    if not (folder / "HR").is_dir() or not (folder / f"LRx{protocol.factor}").is_dir():
        raise SettingsError(
            f"{data}: no {protocol.folder}/ with HR/ and LRx{protocol.factor}/ in it; "
            f"protocol {protocol.name} needs the files of {protocol.origin}"
        )
    pairs = paired(folder / "HR", folder / f"LRx{protocol.factor}")
    remarks = []
    if len(pairs) != protocol.complete:
        remarks.append(f"{len(pairs)} of the {protocol.complete} pictures of {protocol.folder}")
    return Task(protocol.name, protocol.border, pairs, (*remarks, *_recognised(protocol, pairs)))


def of_folders(references: Path, sources: Path, border: int = 4) -> Task:
    """The pairs of two folders of the user's."""
    return Task("pairs", border, paired(references, sources))


def known_digests() -> dict[str, str]:
    """SHA-256 of the files that we know, by their path inside the data folder."""
    text = (files("enlarger.evaluation") / "data" / "protocol_files.tsv").read_text("ascii")
    return {path: digest for digest, path in (line.split("\t") for line in text.splitlines())}


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recognised(protocol: Protocol, pairs: tuple[Pair, ...]) -> list[str]:
    known = known_digests()
    changed, strange = [], 0
    for pair in pairs:
        for path in (pair.reference, pair.source):
            if path is None:
                continue
            wanted = known.get(f"{protocol.folder}/{path.parent.name}/{path.name}")
            if wanted is None:
                strange += 1
            elif sha256(path) != wanted:
                changed.append(f"{path.parent.name}/{path.name}")
    remarks = []
    if changed:
        listed = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        remarks.append(f"not the published files: {listed}; the numbers do not compare with others'")
    if strange:
        remarks.append(f"{strange} files whose digests are not known here")
    return remarks
