"""TorchScript archives: their code is read before torch sees it, and only then loaded.

A TorchScript file is a program. Torch interprets it without Python, yet its operators include
ones that read and write files, and loading runs the archive's own methods. So its code is
parsed here first: calls may go to functions of the archive itself and to the operators of
``allowed``, nothing else. What remains are loops without end and tensors without measure;
against those the process has limits.
"""

from __future__ import annotations

import ast
import io
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from segbatch.errors import ModelError
from segbatch.learn.intake.archive import opened, text
from segbatch.learn.intake.forms.allowed import allowed
from segbatch.learn.intake.forms.export import script_to_onnx

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_CODE = 16 * 1024**2
BUILT_IN = frozenset(
    (
        *("annotate", "uninitialized", "unchecked_cast", "getattr", "isinstance"),
        *("int", "float", "bool", "str", "len", "range"),
    )
)
FORBIDDEN = (
    ast.Import,
    ast.ImportFrom,
    ast.Lambda,
    ast.JoinedStr,
    ast.With,
    ast.AsyncWith,
    ast.AsyncFunctionDef,
    ast.Await,
    ast.Global,
    ast.Nonlocal,
    ast.Delete,
    ast.NamedExpr,
)
ONNX = "export the network as ONNX where it was trained, and give that file"


def read_torchscript(file: Path) -> Any:
    """Return the vetted ONNX graph of a TorchScript file.

    Raises
    ------
    ModelError
        Its code does more than compute, or it cannot be loaded or exported.
    """
    try:
        script = torch.jit.load(looked_at(file), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise ModelError(
            f"{file}: {' '.join(str(error).split())[:200]}",
            "TorchScript that this torch loads",
            ONNX,
        ) from error
    return script_to_onnx(script, str(file))


def looked_at(file: Path) -> io.BytesIO:
    """Return an archive of what was looked at, and of nothing else.

    It is written anew, so that torch cannot read out of the file what was not seen here.

    Raises
    ------
    ModelError
        Its code, or its data, call for anything that is not let through.
    """
    whole = io.BytesIO()
    with opened(file) as archive, zipfile.ZipFile(whole, "w") as again:
        names = [name for name in archive.namelist() if not name.endswith(".debug_pkl")]
        code = [name for name in names if "/code/" in name and name.endswith(".py")]
        odd = [name for name in names if "/code/" in name and name not in code]
        if odd or sum(archive.getinfo(name).file_size for name in code) > LARGEST_CODE:
            raise _odd(file, odd[0] if odd else "code of more than 16 MiB")
        _look_at_code(file, {name: _parsed(file, name, text(archive, name, file)) for name in code})
        for name in names:
            content = text(archive, name, file, largest=1 << 31)
            if name.endswith(".pkl") and b"torch.classes" in content:
                raise _odd(file, f"an object of torch.classes in {name}")
            again.writestr(name, content)
    whole.seek(0)
    return whole


def _look_at_code(file: Path, trees: dict[str, ast.Module]) -> None:
    """Raise ModelError where code calls anything that is not let through."""
    functions = [
        (name, node)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    registered = {schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas()}
    own = {function.name for _, function in functions} - registered
    calls: set[int] = set()
    looked_at: set[int] = set()
    for name, tree in trees.items():
        for node in ast.walk(tree):
            _look_at(node, file, name)
            if isinstance(node, ast.Call):
                calls.add(id(node))
    for name, function in functions:
        callable_here = own | BUILT_IN | _aliases(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                _look_at_call(node, file, name, callable_here)
                looked_at.add(id(node))
    if calls - looked_at:
        raise _odd(file, "calls outside its functions")


def _aliases(function: ast.FunctionDef) -> set[str]:
    """Return the local names that stand for functions of the archive or of torch only."""
    names: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            rooted = _chain(node.value)[0] in ("__torch__", "torch", "ops")
            for target in node.targets:
                (names if rooted else others).update(
                    each.id for each in ast.walk(target) if isinstance(each, ast.Name)
                )
    return names - others


def _parsed(file: Path, name: str, code: bytes) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _odd(file, f"{name}, which cannot be parsed") from error


def _look_at(node: ast.AST, file: Path, name: str) -> None:
    if isinstance(node, FORBIDDEN):
        raise _odd(file, f"{type(node).__name__} in {name}, line {getattr(node, 'lineno', 0)}")
    if not isinstance(node, ast.Attribute):
        return
    chain = _chain(node)
    fine = True
    if chain[0] == "torch":
        fine = len(chain) == 2 and allowed(chain[1])
    elif chain[0] == "ops" and len(chain) > 2:
        fine = chain[1] in ("aten", "prim") and allowed(chain[2])
    elif chain[0] == "__torch__":
        fine = chain[1:3] != ["torch", "classes"]
    if not fine:
        raise _odd(file, f"{'.'.join(chain)} in {name}, line {node.lineno}")


def _look_at_call(node: ast.Call, file: Path, name: str, own: set[str]) -> None:
    chain = _chain(node.func)
    if len(chain) == 1 or chain[0] not in ("torch", "ops", "__torch__"):
        # A method, or a local name for a function; "?" would call the result of a call.
        called = chain[-1]
        if called not in own and not (len(chain) > 1 and allowed(called)):
            raise _odd(file, f"a call of {'.'.join(chain)} in {name}, line {node.lineno}")


def _chain(node: ast.AST) -> list[str]:
    """Return the names of ``a.b.c``; a call or subscript at its root is ``?``."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    names.append(node.id if isinstance(node, ast.Name) else "?")
    return names[::-1]


def _odd(file: Path, what: str) -> ModelError:
    return ModelError(
        f"{file}: TorchScript with {what}",
        "code that computes on tensors and does nothing else",
        ONNX,
    )
