"""Settings: one frozen value, merged from flags, environment, file and defaults.

Each key is spelled once, as a field of a struct below; flags (``--tile-px``),
variables (``SEGBATCH_TILE_PX``, ``SEGBATCH_QUALITY_BLUR_Z``) and TOML keys
(``tile_px``, ``[quality] blur_z``) are derived from it.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from segbatch.errors import SettingsError
from segbatch.settings.sections import (
    CameraSettings,
    Count,
    QualitySettings,
    ServeSettings,
    WatchSettings,
)

ENV_PREFIX = "SEGBATCH_"
PROFILE_BIT_DEPTH = {"zelux": 10, "12bit": 12, "14bit": 14, "16bit": 16}

Engine = Literal["auto", "tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
Profile = Literal["zelux", "12bit", "14bit", "16bit"]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a run can be told. Field names are the public names of the settings."""

    model: str = ""
    arch: str = ""
    engine: Engine = "auto"
    precision: Precision = "auto"
    tile_px: Literal["auto"] | Annotated[int, Meta(ge=32)] = "auto"
    batch: Literal["auto"] | Count = "auto"
    memory_gib: Annotated[float, Meta(ge=0.1, le=4096.0)] = 2.0
    threshold: Annotated[float, Meta(gt=0.0, lt=1.0)] | None = None
    out: str = ""
    profile: Profile = "zelux"
    bit_depth: Annotated[int, Meta(ge=1, le=32)] | None = None
    max_file_gib: Annotated[float, Meta(gt=0.0, le=4096.0)] = 4.0
    redo: bool = False
    save_probabilities: bool = False
    save_labels: bool = False
    threads: Literal["auto"] | Annotated[int, Meta(ge=1, le=1024)] = "auto"
    quality: QualitySettings = msgspec.field(default_factory=QualitySettings)
    watch: tuple[WatchSettings, ...] = ()
    serve: ServeSettings = msgspec.field(default_factory=ServeSettings)
    camera: CameraSettings = msgspec.field(default_factory=CameraSettings)

    def result_sha256(self) -> str:
        """Hash of the settings that change a verdict or a file beside the raw.

        Where results go, how fast they are computed and what is kept besides
        the mask is left out: none of it makes a mask another.
        """
        keys = ("threshold", "profile", "bit_depth", "quality")
        picked = {key: msgspec.to_builtins(getattr(self, key)) for key in keys}
        return hashlib.sha256(msgspec.json.encode(picked, order="sorted")).hexdigest()


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "quality": QualitySettings,
    "watch": WatchSettings,
    "serve": ServeSettings,
    "camera": CameraSettings,
}
TABLES = ("watch",)  # of which there may be several


def load(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Merge settings: ``flags`` over ``environ`` over ``file`` over the defaults.

    Parameters
    ----------
    file
        A TOML file, or None.
    environ
        Variables such as ``SEGBATCH_TILE_PX``; others are ignored, but a
        ``SEGBATCH_`` variable that names no setting is refused.
    flags
        Keys as in the file, sub-keys joined by a point (``quality.blur_z``);
        None values are taken as not given.

    Raises
    ------
    SettingsError
        Unknown key (the nearest known one is named), wrong type, out of
        range, or a file that cannot be read as TOML.
    """
    merged: dict[str, Any] = {}
    if file is not None:
        _merge(merged, _read_toml(file), str(file))
    if environ is not None:
        _merge(merged, _from_environ(environ), "the environment")
    if flags is not None:
        given = {key: value for key, value in flags.items() if value is not None}
        _merge(merged, _nest(given), "the command line")
    return merged_to_settings(merged)


def merged_to_settings(merged: Mapping[str, Any]) -> Settings:
    """Turn a nested mapping with known keys into checked ``Settings``."""
    try:
        return msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`")
        got = merged
        for part in re.findall(r"[^.\[\]]+", key):
            got = got.get(part, {}) if isinstance(got, Mapping) else got
            got = got[int(part)] if isinstance(got, list) and part.isdigit() else got
        raise SettingsError(
            f"setting {key} = {got!r}",
            wanted_of(key) or message[0].lower() + message[1:],
            "see the README's table of settings",
        ) from error


def wanted_of(key: str) -> str:
    """Say in words which values a setting takes; empty for an unknown key."""
    head, _, tail = key.partition(".")
    table = SECTIONS.get(head.partition("[")[0], Settings) if tail else Settings
    hints = get_type_hints(table, include_extras=True)
    return _words(hints[tail or head]) if (tail or head) in hints else ""


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is tuple:
        return f"a list of {_words(args[0])}s".replace("a whole", "whole")
    if origin is Annotated:
        limits = {
            "at least": args[1].ge,
            "above": args[1].gt,
            "at most": args[1].le,
            "below": args[1].lt,
            "with at most this many:": args[1].max_length,
        }
        told = [f"{word} {limit:g}" for word, limit in limits.items() if limit is not None]
        return " ".join([_words(args[0]), ", ".join(told)])
    if args:
        return " or ".join(_words(part) for part in args if part is not type(None))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "a table")


def known_keys() -> list[str]:
    """Every setting's dotted name."""
    names = []
    for item in msgspec.structs.fields(Settings):
        if item.name in SECTIONS:
            inner = msgspec.structs.fields(SECTIONS[item.name])
            names += [f"{item.name}.{sub.name}" for sub in inner]
        else:
            names.append(item.name)
    return names


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"settings file {file}: {error}", "a readable TOML file", "check --config"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f"settings file {file} is not TOML: {error}",
            "lines of KEY = VALUE below [section] lines, text in quotes",
            "mend that line; the example settings of install-service show every key",
        ) from error


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    by_variable = {
        key.replace(".", "_").upper(): key
        for key in known_keys()
        if key.partition(".")[0] not in TABLES  # these stand in a file, or on the command line
    }
    found: dict[str, Any] = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        name = variable[len(ENV_PREFIX) :]
        if name not in by_variable:
            _refuse_unknown(variable, [ENV_PREFIX + known for known in by_variable], "environment")
        found[by_variable[name]] = value
    return _nest(found)


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        head, _, tail = key.partition(".")
        if tail:
            nested.setdefault(head, {})[tail] = value
        else:
            nested[head] = value
    return nested


def _merge(target: dict[str, Any], update: Mapping[str, Any], where: str) -> None:
    known = known_keys()
    for key, value in update.items():
        if key in TABLES:
            if not (isinstance(value, list) and all(isinstance(one, Mapping) for one in value)):
                raise SettingsError(
                    f"{key} = {value!r} in {where}",
                    f"tables [[{key}]]",
                    f"write [[{key}]] with two brackets before the lines of each",
                )
            target[key] = []
            for one in value:
                _require_known(key, one, known, where)
                target[key].append(dict(one))
        elif key in SECTIONS:
            if not isinstance(value, Mapping):
                raise SettingsError(
                    f"{key} = {value!r} in {where}", f"a table [{key}]", "see the README's table"
                )
            _require_known(key, value, known, where)
            target.setdefault(key, {}).update(value)
        elif key in known:
            target[key] = value
        else:
            _refuse_unknown(key, known, where)


def _require_known(table: str, keys: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in keys:
        if f"{table}.{key}" not in known:
            _refuse_unknown(f"{table}.{key}", known, where)


def _refuse_unknown(key: str, known: list[str], where: str) -> None:
    sections = {name.partition(".")[0] for name in known if "." in name}
    near = difflib.get_close_matches(key, sections, n=1) if "." not in key else []
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else "see the README's table of settings"
    raise SettingsError(f"unknown setting {key} in {where}", "a known setting", remedy)
