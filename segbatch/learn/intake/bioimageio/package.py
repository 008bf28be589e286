"""The files of a package: in a folder, in a zip archive, beside a description."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from segbatch.errors import ModelError
from segbatch.infer.engine.digest import sha256_of
from segbatch.infer.engine.network.adopt import DESCRIPTIONS
from segbatch.learn.intake.archive import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_TEXT = 1 << 20
MOST_VALUES = 20_000
DEEPEST = 32
_FLOAT = "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # no types
    """Reads numbers as YAML 1.2 has them, which the format is written in.

    PyYAML follows 1.1, to which ``1e-06`` is a text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - of each class of loaders its own
        first: [each for each in resolvers if each[0] != _FLOAT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


# Section 10.3.2 of its specification, the core schema; whole numbers are others.
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"""(?: [-+]? (?: \.[0-9]+ | [0-9]+\.[0-9]* ) (?: [eE][-+]?[0-9]+ )?
              | [-+]? [0-9]+ [eE][-+]?[0-9]+
              | [-+]? \. (?: inf | Inf | INF )
              | \. (?: nan | NaN | NAN ) )\Z""",
        re.VERBOSE,
    ),
    list("-+.0123456789"),
)


class Package:
    """The description and the folder of a package.

    Parameters
    ----------
    source
        What was named, for errors.
    description
        The description's file.
    """

    def __init__(self, source: Path, description: Path) -> None:
        self.source = source
        self._folder = description.parent.resolve()
        self.content = _mapping(description, source)
        # All that may change what the package is; an archive is one file.
        self.read = [source / description.name if source.is_dir() else source]
        self._in_place = source.is_dir() or source.parent.resolve() == self._folder

    def file(self, name: str, sha256: str | None) -> Path:
        """Return a file that the description names, its hash verified where one is stated.

        Raises
        ------
        ModelError
            It lies elsewhere, is missing, or is not the file that is described.
        """
        named = self._place(name)
        found = Path(os.path.realpath(named))
        if not found.is_file():
            raise ModelError(
                f"{self.source}: {name} is not in the package",
                "a package with its files; nothing is downloaded",
                "download the whole package as a zip archive",
            )
        if sha256 is not None:
            other = sha256_of(found)
            if other != sha256:
                raise ModelError(
                    f"{self.source}: {name} has SHA-256 {other}",
                    f"{sha256}, as the package says",
                    "download the package again",
                )
        # A link's name stays when it comes to lead to another file.
        self.note([named])
        return found

    def has(self, name: str) -> bool:
        """Return whether the package holds a file."""
        return self._place(name).is_file()

    def note(self, files: list[Path]) -> None:
        """Note which files were read, where they are not all in one archive."""
        if self._in_place:
            self.read += [file for file in files if file not in self.read]

    def without_places(self, text: str) -> str:
        """Return a text without where the package lies, which is no part of what it is."""
        source = self.source.absolute()
        for folder in (self._folder, source, source.parent, self.source, self.source.parent):
            text = text.replace(f"{folder}{os.sep}", "")
        return text.replace(f"{self.source}: ", "")

    def _place(self, name: str) -> Path:
        """Return where a file would be."""
        plain = PurePosixPath(name)
        if "://" in name:  # a package carries what its addresses point to under their last part
            plain = PurePosixPath(plain.name)
        named = self._folder / plain
        found = Path(os.path.realpath(named))
        if (
            plain.is_absolute()
            or ".." in plain.parts
            or "\\" in name
            or (found.exists() and not found.is_relative_to(self._folder))
        ):
            raise ModelError(
                f"{self.source}: file {name!r}",
                "a file inside the package",
                "do not use this package: such names are made to read elsewhere",
            )
        return named


@contextmanager
def opened_package(source: Path) -> Iterator[Package]:
    """Lend a package; a zip archive is unpacked into a folder that is gone afterwards."""
    if source.is_dir():
        yield Package(source, next(f for n in DESCRIPTIONS if (f := source / n).is_file()))
        return
    if source.suffix.lower() in (".yaml", ".yml"):
        yield Package(source, source)
        return
    with tempfile.TemporaryDirectory(prefix="segbatch-") as folder, opened(source) as archive:
        archive.extractall(folder)
        for name in DESCRIPTIONS:
            if found := sorted(Path(folder).rglob(name), key=lambda file: len(file.parts)):
                yield Package(source, found[0])
                return


def _mapping(description: Path, source: Path) -> dict[str, Any]:
    """Return a description as plain values."""
    try:
        if description.stat().st_size > LARGEST_TEXT:
            raise ModelError(f"{source}: a description of more than {LARGEST_TEXT} bytes")
        text = description.read_text(encoding="utf-8")
        read = yaml.load(text, Loader=_Loader)  # noqa: S506 - of plain values only
        content = _plain(read, [MOST_VALUES], DEEPEST)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ModelError(
            f"{source}: {description.name}: {' '.join(str(error).split())[:200]}",
            "a description in YAML, of plain values",
            "download the package again",
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{source}: {description.name} is no mapping", "a bioimage.io description")
    return content


def _plain(value: Any, left: list[int], depth: int) -> Any:
    """Copy nested values, refusing more of them than a description has."""
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise ValueError("values that repeat each other without end")
    if isinstance(value, dict):
        return {str(key): _plain(each, left, depth - 1) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, left, depth - 1) for each in value]
    return value
