"""Settings are declared once: one typed, documented record for each engine.

Flags, Python keywords, JSON, `--help`, checks and "did you mean" all come from the declaration:

    @dataclass(frozen=True)
    class PocketSettings(TiledSettings):
        steps: int = setting(2, "Denoising steps.", choices=(1, 2, 4))

Nothing here imports torch, numpy or Pillow.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from enlarger.errors import SettingsError
from enlarger.size import MAX_SCALE, MAX_SIDE, Size

Kind = Literal["int", "float", "bool", "text", "file", "size", "seed", "bytes"]
"""How a value is read: `size` is WxH, `seed` also takes "random", `bytes` takes 3GB. A `file` is known to records by
its name and what it holds, never by its path."""

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Rule:
    """What a setting may be, and what it means; `help` is the one source for --help, docs and forms.

    Attributes:
        kind: How a value is read and checked.
        help: One or two sentences; units included.
        low: Least allowed value, itself allowed unless `above` is set.
        high: Largest allowed value, itself allowed.
        above: The value must be greater than this.
        choices: The only allowed values.
        convert: Turns a value of the kind into the one that is kept, or raises `SettingsError`.
        many: Whether it may be given several times; then it is a tuple, of which each value follows the rule.
        flags: Short flags beside the long one made from the name.
        metavar: What stands for the value in --help.
        group: Heading in --help.
    """

    kind: Kind
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[Any, ...] = ()
    convert: Callable[[Any], Any] | None = None
    many: bool = False
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    group: str = "Engine"


def setting(
    default: Any,
    help: str,
    *,
    kind: Kind | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Iterable[Any] = (),
    convert: Callable[[Any], Any] | None = None,
    many: bool = False,
    flags: Iterable[str] = (),
    metavar: str | None = None,
    group: str = "Engine",
) -> Any:
    """A field of a settings record (see `Rule` for the arguments).

    `kind` is told from the default where that is possible; give it where the default is None or a tuple.
    """
    if kind is None:
        by_type: dict[type, Kind] = {bool: "bool", int: "int", float: "float", str: "text"}
        kind = by_type[type(default)]
    rule = Rule(kind, help, low, high, above, tuple(choices), convert, many, tuple(flags), metavar, group)
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class SizeSettings:
    """How large the result is, and what is read of the input; the same for every engine."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    scale: float | None = setting(
        None, "Output pixels per input pixel, 1 to 16, fractions too; default: 4, or what the engine is for.",
        kind="float", low=1, high=MAX_SCALE, flags=("-s",), metavar="F", group="Size",
    )  # fmt: skip
    size: Size | None = setting(  # noqa: RUF009 (a field, not a shared value)
        None, "Exact size of the result in pixels.", kind="size", metavar="WxH", group="Size"
    )
    longest: int | None = setting(
        None, "Pixels of the result's longer side.", kind="int", low=1, high=MAX_SIDE, metavar="N", group="Size"
    )
    megapixels: float | None = setting(
        None, "Million pixels of the result.", kind="float", above=0, high=1e6, metavar="M", group="Size"
    )
    page: int = setting(
        1, "Page or frame of the input, counted from 1.", low=1, high=MAX_SIDE, metavar="N", group="Input"
    )
    max_pixels: int = setting(100_000_000, "Refuse inputs of more pixels than this.", low=1, metavar="N", group="Input")

    def verify(self) -> None:
        """Check what no setting can check alone.

        Raises:
            SettingsError: Two settings contradict each other.
        """

    def fits(self, target: Size) -> None:
        """Check what can only be checked once the result's size is known, before any work.

        Raises:
            SettingsError: A setting names a place that the result does not have.
        """


def consistency(default: float) -> Any:
    """The field `consistency` with an engine's own default; every engine has it, and it means the same for all."""
    return setting(
        default,
        "Back-projection, 0 to 1: at 1 the result made small again is the input, "
        "to 1.5 levels of 255 on photographs (root mean square).",
        low=0, high=1, metavar="F",
    )  # fmt: skip


@dataclass(frozen=True)
class TiledSettings(SizeSettings):
    """Settings of every engine: its work is cut into tiles, and its result may be tied to the input."""

    consistency: float = consistency(0.0)
    tile: int | None = setting(
        None, "Side of a tile in output pixels; default: planned from the engine and the memory.",
        kind="int", low=16, high=MAX_SIDE, flags=("-t",), metavar="N", group="Tiles",
    )  # fmt: skip
    batch: int | None = setting(
        None, "Most tiles in one forward pass; where it could change bytes, a CPU takes them one by one.",
        kind="int", low=1, high=1024, metavar="N", group="Tiles",
    )  # fmt: skip


@dataclass(frozen=True)
class SeededSettings(TiledSettings):
    """Settings of every engine that draws noise."""

    seed: int = setting(
        0, "Where the noise comes from: 0 to 2^63-1, or 'random' (drawn, told and stored).", kind="seed",
        metavar="N|random",
    )  # fmt: skip
    samples: int = setting(1, "Results of one seed to choose from, each with noise of its own.", low=1, high=64)
    sample: int | None = setting(
        None, "Make only this one of the samples, counted from 1.", kind="int", low=1, high=64, metavar="N"
    )

    def verify(self) -> None:
        """See `SizeSettings.verify`."""
        super().verify()
        if self.sample is not None and self.sample > self.samples:
            raise SettingsError(f"sample {self.sample} is not one of {self.samples} (--samples)")


@dataclass(frozen=True)
class Loading:
    """What loading any engine may be told; settings of `Upscaler`, not of one picture."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    max_memory: int | None = setting(
        None, "Most memory to plan for, such as 3GB; default: what is free.", kind="bytes", metavar="SIZE",
        group="Machine",
    )  # fmt: skip

    def verify(self) -> None:
        """See `SizeSettings.verify`."""


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise SettingsError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps")
    return name


@dataclass(frozen=True)
class Machine(Loading):
    """Where and how a network is loaded; for every engine that has one."""

    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.", convert=_device, metavar="DEVICE", group="Machine")
    dtype: str = setting(
        "auto", "Numbers in the networks.", choices=("auto", "float32", "float16", "bfloat16"), group="Machine"
    )


FOREIGN = {
    "num_inference_steps": "steps",
    "number_of_inference_steps": "steps",
    "ddim_steps": "steps",
    "sampling_steps": "steps",
    "cfg_scale": "guidance_scale",
    "cfg": "guidance_scale",
    "guidance": "guidance_scale",
    "denoising_strength": "strength",
    "denoise": "strength",
    "controlnet_conditioning_scale": "control_scale",
    "controlnet_scale": "control_scale",
    "tile_size": "tile",
    "tile_overlap": "overlap",
    "tile_pad": "overlap",
    "outscale": "scale",
    "upscale": "scale",
    "upscale_by": "scale",
    "upscale_factor": "scale",
    "factor": "scale",
    "width": "size",
    "height": "size",
    "negative": "negative_prompt",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "torch_dtype": "dtype",
    "precision": "dtype",
    "colorfix_type": "color_fix",
    "colour_fix": "color_fix",
    "dec_w": "cfw_weight",
    "vqgantile_size": "tile",
    "batch_size": "batch",
    "n_samples": "samples",
    "num_images_per_prompt": "samples",
    "generator": "seed",
    "manual_seed": "seed",
    "model_name": "model",
    "model_path": "model",
    "gpu_id": "device",
    "ext": "format",
    "force": "overwrite",
}
"""Words of other tools -> ours. They are refused with our word, never silently taken."""

Record = TypeVar("Record")


def rules(record: type) -> dict[str, Rule]:
    """Name -> rule of every setting of a record, in order of declaration."""
    return {item.name: item.metadata["rule"] for item in _fields(record) if "rule" in item.metadata}


def defaults(record: type) -> dict[str, Any]:
    """Name -> default value of every setting of a record."""
    return {item.name: item.default for item in _fields(record) if item.default is not MISSING}


def _fields(record: type) -> tuple[Field[Any], ...]:
    return fields(record)


def flag(name: str) -> str:
    """The long flag of a setting: `max_memory` -> `--max-memory`."""
    return "--" + name.replace("_", "-")


def build(record: type[Record], values: Mapping[str, Any], *, owner: str, known: Iterable[str] = ()) -> Record:
    """Make a settings record from keywords, checking everything.

    Args:
        record: The record's class.
        values: Name -> value as a Python object; None means "not given".
        owner: Who the settings are for, as it stands in errors: "engine pocket".
        known: Names that exist for other engines: told apart from names that exist nowhere.

    Returns:
        The record; a preset's values lie under the ones given.

    Raises:
        SettingsError: Unknown name, name of another engine, or value out of range; says what is right.
    """
    declared = rules(record)
    for name in values:
        if name not in declared:
            raise SettingsError(unknown(name, declared, owner=owner, known=known))
    given = {name: check(name, value, declared[name]) for name, value in values.items() if value is not None}
    presets: Mapping[str, Mapping[str, Any]] = getattr(record, "presets", {})
    preset = given.get("preset", defaults(record).get("preset"))
    if preset is not None:
        given = {**presets[preset], **given}
    wishes = [name for name in ("scale", "size", "longest", "megapixels") if given.get(name) is not None]
    if len(wishes) > 1:
        raise SettingsError(f"give only one of {' and '.join(map(flag, wishes))}: each sets the size")
    made = record(**given)
    if isinstance(made, (SizeSettings, Loading)):
        made.verify()
    return made


def unknown(name: str, declared: Iterable[str], *, owner: str, known: Iterable[str] = ()) -> str:
    """The line that refuses a name: our word for it, the near one, or whose setting it is."""
    plain = name.lstrip("-").replace("-", "_")
    declared = list(declared)
    everywhere = sorted({*declared, *known})
    if plain in everywhere:
        return f"{owner} has no setting {plain}; it has: {', '.join(declared)}"
    if plain.lower() in FOREIGN:
        ours = FOREIGN[plain.lower()]
        return f"unknown setting {name!r}: here it is called {ours} ({flag(ours)})"
    near = difflib.get_close_matches(plain.lower(), everywhere, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]} ({flag(near[0])})?" if near else f"{owner} has: {', '.join(declared)}"
    return f"unknown setting {name!r}: {hint}"


def check(name: str, value: Any, rule: Rule) -> Any:
    """The value in its own type, if the rule allows it.

    Raises:
        SettingsError: Wrong type or out of range; names the setting, the value and what is allowed.
    """
    if rule.many:
        values = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(check(name, each, replace(rule, many=False)) for each in values)
    value = _convert(name, value, rule)
    if rule.convert is not None:
        value = rule.convert(value)
    if rule.choices and value not in rule.choices:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in rule.choices], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"{name} {_show(value)} is not one of {', '.join(map(str, rule.choices))}{hint}")
    if rule.kind in ("int", "float", "bytes") and not _inside(value, rule):
        raise SettingsError(f"{name} {_show(value)} is out of range: {allowed(rule)}")
    return value


def allowed(rule: Rule) -> str:
    """The valid range in words, such as "1 to 16"."""
    if rule.choices:
        return "one of " + ", ".join(map(str, rule.choices))
    parts = []
    if rule.above is not None:
        parts.append(f"above {_plain(rule.above)}")
    if rule.low is not None and rule.high is not None:
        return f"{_plain(rule.low)} to {_plain(rule.high)}"
    if rule.low is not None:
        parts.append(f"at least {_plain(rule.low)}")
    if rule.high is not None:
        parts.append(f"at most {_plain(rule.high)}")
    return " and ".join(parts) or "any"


def _plain(number: float) -> str:
    """A bound as people write it: 1000000, not 1e+06."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def _inside(value: float, rule: Rule) -> bool:
    return (
        math.isfinite(value)
        and (rule.low is None or value >= rule.low)
        and (rule.high is None or value <= rule.high)
        and (rule.above is None or value > rule.above)
    )


def _convert(name: str, value: Any, rule: Rule) -> Any:
    """Turn text (from the command) or a Python value into the setting's type."""
    try:
        return _CONVERTERS[rule.kind](value)
    except SettingsError as error:
        raise SettingsError(f"{name} {_show(value)} {error}") from None
    except (TypeError, ValueError, OverflowError):
        words = _KIND_WORDS[rule.kind]
        within = allowed(rule) if rule.kind in ("int", "float") or rule.choices else "any"
        raise SettingsError(
            f"{name} {_show(value)} is not {words}" + ("" if within == "any" else f": {within}")
        ) from None


_KIND_WORDS: dict[Kind, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "yes or no",
    "text": "text",
    "file": "the path of a file",
    "size": "a size such as 1800x512",
    "seed": f"a seed (0 to {MAX_SEED}, or random)",
    "bytes": "a memory size such as 3GB",
}


def _show(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else f"'{value}'"
    return text if len(text) <= 60 else text[:57] + "..."


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    number = int(value) if isinstance(value, str) else value.__index__() if hasattr(value, "__index__") else value
    if number != int(number):
        raise ValueError
    return int(number)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, str):
        if value.lower() not in ("yes", "no", "true", "false", "on", "off"):
            raise ValueError
        return value.lower() in ("yes", "true", "on")
    if not isinstance(value, bool):
        raise TypeError
    return value


def _to_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    if "\0" in value:
        raise SettingsError("holds a NUL character")
    return value


def _to_file(value: Any) -> str:
    text = _to_text(os.fspath(value))
    if not text.strip():
        raise SettingsError("is no file")
    return text


def _to_size(value: Any) -> Size:
    if isinstance(value, Size):
        return value
    if isinstance(value, str):
        width, height = (int(side) for side in value.lower().replace("×", "x").split("x"))
    else:
        raise SettingsError("is not a size: give '1800x512' (width x height) or enlarger.Size(height, width)")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise SettingsError(f"is out of range: sides of 1 to {MAX_SIDE} pixels")
    return Size(height, width)


def _to_seed(value: Any) -> int:
    if isinstance(value, str) and value.strip().lower() == "random":
        return secrets.randbits(63)
    seed = _to_int(value)
    if not 0 <= seed <= MAX_SEED:
        raise SettingsError(f"is out of range: 0 to {MAX_SEED} (2^63-1), or random")
    return seed


def _to_bytes(value: Any) -> int:
    if not isinstance(value, str):
        return _to_int(value)
    text = value.strip().lower().removesuffix("b").removesuffix("i")
    units = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
    factor = units.get(text[-1:], 1)
    number = float(text[:-1] if factor != 1 else text)
    if not 0 < number < 1e15:
        raise SettingsError("is out of range: a memory size such as 3GB, above 0")
    return int(number * factor)


_CONVERTERS = {
    "int": _to_int,
    "float": _to_float,
    "bool": _to_bool,
    "text": _to_text,
    "file": _to_file,
    "size": _to_size,
    "seed": _to_seed,
    "bytes": _to_bytes,
}


def to_json(record: Any) -> dict[str, Any]:
    """The settings as plain JSON values; `build` on the result's items gives the same record again, except for files.

    A file becomes its name and a digest of what it holds: a path would say too much, a name too little.
    """
    declared = rules(type(record))
    plain = {name: value for name, value in asdict(record).items() if name in declared}
    for name, rule in declared.items():
        if rule.many:
            plain[name] = [_plainly(value, rule) for value in plain[name]]
        elif plain[name] is not None:
            plain[name] = _plainly(plain[name], rule)
    return plain


def _plainly(value: Any, rule: Rule) -> Any:
    if rule.kind == "size":
        return str(Size(*value))
    if rule.kind != "file":
        return value
    name = os.path.basename(value)
    try:
        with open(value, "rb") as file:
            return f"{name} ({hashlib.file_digest(file, 'sha256').hexdigest()[:16]})"
    except OSError:  # whoever uses the file says so
        return name
