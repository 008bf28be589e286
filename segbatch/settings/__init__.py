"""Settings: one frozen value, merged from flags, environment, file and defaults.

Each key is spelled once, as a field of a struct below; flags (``--tile-px``),
variables (``SEGBATCH_TILE_PX``, ``SEGBATCH_QUALITY_BLUR_Z``) and TOML keys
(``tile_px``, ``[quality] blur_z``) are derived from it.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from segbatch.errors import SettingsError

ENV_PREFIX = "SEGBATCH_"
PROFILE_BIT_DEPTH = {"zelux": 10, "12bit": 12, "14bit": 14, "16bit": 16}

Engine = Literal["auto", "openvino", "onnxruntime"]
Precision = Literal["auto", "fp32", "bf16"]
Profile = Literal["zelux", "12bit", "14bit", "16bit"]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
Count = Annotated[int, Meta(ge=1)]


class QualitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Thresholds of the frame judgement (measures: ``segbatch.infer.quality.measures``).

    Attributes
    ----------
    enabled
        Judge frames at all; if not, every frame is accepted.
    torn_zero_rows
        Rows of zeros at the end from which a frame counts as not written to its end.
    torn_columns_fraction
        Fraction of columns that break at one row from which two exposures are joined there.
    torn_rival_ratio
        That fraction must be this many times the highest at any other row.
    torn_step_z
        Robust standard deviations by which the step of the level at a row must exceed those at
        other rows for two exposures to be joined there.
    saturated_fraction
        Fraction of all pixels at the converter's ceiling above which a frame is overexposed.
    saturated_bright_fraction, saturated_object_fraction
        It also is where both are exceeded: pixels at the ceiling among those brighter
        than half-way to it, and objects that reach it among all objects.
    underexposed_signal_counts
        Contrast of typical structure below which it spans too few counts.
    empty_structure_cells
        Cells of 16x16 px with structure above the noise below which a frame is empty.
    empty_signal_counts
        Contrast of typical structure below which it is one step of the converter, and nothing.
    fine_snr
        Energy of structure over noise at wavelengths of 8 to 16 px below which there is
        no fine detail to tell focus by, and contrast is compared instead.
    noise_z
        Robust standard deviations by which log2 of the noise may exceed the median of its group.
    noise_spread_octaves
        Least standard deviation assumed for that, octaves.
    noise_clear_snr
        Signal-to-noise ratio below which a frame noisier than its group is rejected.
    noise_snr_loss
        It is also rejected where its ratio is this many times lower than the group's median.
    snr
        Signal-to-noise ratio below which any frame is noisy.
    focus_octaves
        Focus below which any frame is blurred.
    blur_z
        Robust standard deviations by which focus may stay below the sharp frames of its group.
    blur_drop_octaves
        Least drop of focus, octaves, that counts as blur by comparison.
    blur_third_z, blur_third_drop_octaves
        The same two for the least sharp third of the objects, where the median object falls
        by at least half of ``blur_drop_octaves``.
    blur_drop_most_octaves
        Drop of focus that counts as blur however much the group scatters.
    blur_signal_loss
        A frame without fine detail is blurred where its contrast is this many times lower
        than its group's median.
    warm_up_frames
        Frames needed before frames are compared with each other.
    """

    enabled: bool = True
    torn_zero_rows: Count = 2
    torn_columns_fraction: Fraction = 0.08
    torn_rival_ratio: Annotated[float, Meta(ge=1.0)] = 4.0
    torn_step_z: Positive = 8.0
    saturated_fraction: Fraction = 0.01
    saturated_bright_fraction: Fraction = 0.4
    saturated_object_fraction: Fraction = 0.25
    underexposed_signal_counts: Annotated[float, Meta(ge=0.0)] = 8.0
    empty_structure_cells: Count = 2
    empty_signal_counts: Annotated[float, Meta(ge=0.0)] = 1.5
    fine_snr: Annotated[float, Meta(ge=0.0)] = 1.0
    noise_z: Positive = 4.0
    noise_spread_octaves: Positive = 0.1
    noise_clear_snr: Annotated[float, Meta(ge=0.0)] = 12.0
    noise_snr_loss: Annotated[float, Meta(ge=1.0)] = 5.0
    snr: Annotated[float, Meta(ge=0.0)] = 4.0
    focus_octaves: float = -7.0
    blur_z: Positive = 5.0
    blur_drop_octaves: Positive = 0.75
    blur_third_z: Positive = 7.0
    blur_third_drop_octaves: Positive = 0.9
    blur_drop_most_octaves: Positive = 2.5
    blur_signal_loss: Annotated[float, Meta(ge=1.0)] = 4.0
    warm_up_frames: Annotated[int, Meta(ge=2)] = 10


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a run can be told. Field names are the public names of the settings."""

    model: str = ""
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

    def result_sha256(self) -> str:
        """Hash of the settings that change a verdict or a file beside the raw.

        Where results go, how fast they are computed and what is kept besides
        the mask is left out: none of it makes a mask another.
        """
        keys = ("threshold", "profile", "bit_depth", "quality")
        picked = {key: msgspec.to_builtins(getattr(self, key)) for key in keys}
        return hashlib.sha256(msgspec.json.encode(picked, order="sorted")).hexdigest()


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
        for part in key.split(".") if key else ():
            got = got.get(part, {}) if isinstance(got, Mapping) else got
        raise SettingsError(
            f"setting {key} = {got!r}",
            wanted_of(key) or message[0].lower() + message[1:],
            "see the README's table of settings",
        ) from error


def wanted_of(key: str) -> str:
    """Say in words which values a setting takes; empty for an unknown key."""
    head, _, tail = key.partition(".")
    hints = get_type_hints(QualitySettings if tail else Settings, include_extras=True)
    return _words(hints[tail or head]) if (tail or head) in hints else ""


def _words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin is Annotated:
        limits = {
            "at least": args[1].ge,
            "above": args[1].gt,
            "at most": args[1].le,
            "below": args[1].lt,
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
        if item.name == "quality":
            names += [f"quality.{sub.name}" for sub in msgspec.structs.fields(QualitySettings)]
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
        raise SettingsError(f"settings file {file} is not TOML: {error}") from error


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    by_variable = {key.replace(".", "_").upper(): key for key in known_keys()}
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
    sections = {key.partition(".")[0] for key in known if "." in key}
    for key, value in update.items():
        if key in sections:
            if not isinstance(value, Mapping):
                raise SettingsError(f"{key} = {value!r} in {where}", f"a table [{key}]")
            for sub, inner in value.items():
                if f"{key}.{sub}" not in known:
                    _refuse_unknown(f"{key}.{sub}", known, where)
                target.setdefault(key, {})[sub] = inner
        elif key in known:
            target[key] = value
        else:
            _refuse_unknown(key, known, where)


def _refuse_unknown(key: str, known: list[str], where: str) -> None:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else "see the README's table of settings"
    raise SettingsError(f"unknown setting {key} in {where}", "a known setting", remedy)
