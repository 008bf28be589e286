"""The code of a TorchScript archive, looked at without running it.

Torch's own printer writes this code, in few forms. Those are let through and no others: calls go
to an operator of ``allowed`` by its full name, to a function or class of the archive by its full
name or a local name that stands for nothing else, and to methods.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import torch

from segbatch.learn.intake.forms.allowed import allowed

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILT_IN = frozenset(
    (
        *("annotate", "uninitialized", "unchecked_cast", "getattr", "isinstance"),
        *("int", "float", "bool", "str", "len", "range"),
    )
)
ROOTS = ("torch", "ops", "__torch__")
# These would run while it is loaded, or where no graph calls them.
HOOKS = ("__setstate__", "__getstate__", "__del__", "__forward_hooks__", "__forward_pre_hooks__")
BASES = ("Module", "NamedTuple", "Interface", "ModuleInterface", "Enum")
FORMS = (
    *(ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.keyword),
    *(ast.Return, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.While, ast.If),
    *(ast.Raise, ast.Assert, ast.Expr, ast.Pass, ast.Break, ast.Continue),
    *(ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Compare, ast.Call, ast.Constant),
    *(ast.Attribute, ast.Subscript, ast.Name, ast.Slice, ast.List, ast.Tuple, ast.Dict),
    *(ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop),
)


class OddError(Exception):
    """Says what an archive holds that is not let through."""


class Code:
    """The looked-at code of an archive.

    Parameters
    ----------
    sources
        Content of each file of code by its name in the archive.

    Raises
    ------
    OddError
        Anything in it is not let through.

    Attributes
    ----------
    types
        Full names of its classes, from ``__torch__`` on.
    """

    def __init__(self, sources: dict[str, bytes]) -> None:
        self._trees = {name: _parsed(name, content) for name, content in sources.items()}
        self.types: set[str] = set()
        self._functions: set[str] = set()
        self._methods: set[str] = set()
        for name, tree in self._trees.items():
            prefix = name.partition("/code/")[2].removesuffix(".py").replace("/", ".")
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    self.types.add(f"{prefix}.{node.name}")
                    self._methods |= {e.name for e in node.body if isinstance(e, ast.FunctionDef)}
                elif isinstance(node, ast.FunctionDef):
                    self._functions.add(f"{prefix}.{node.name}")
                else:
                    raise _form(node, name)
        # On a tensor, a method of that name would be torch's own.
        self._methods -= {each.name.rpartition("::")[2] for each in _registered()}
        for name, tree in self._trees.items():
            for top in tree.body:
                inside = top.body if isinstance(top, ast.ClassDef) else [top]
                for node in (top, *inside):
                    _look_at_definition(node, name, isinstance(top, ast.ClassDef))
                for node in inside:
                    self._look_at(node, name)

    def plain(self, name: str) -> bytes:
        """Return a file's code as it was understood here, without anything else."""
        return f"{ast.unparse(self._trees[name])}\n".encode("ascii")

    def _look_at(self, whole: ast.AST, name: str) -> None:
        """Raise OddError where one function, or one line of a class, is more than computing."""
        stored = {each for each, _ in _bindings(whole)}
        aliases = self._aliases(whole)
        inner = {id(node.value) for node in ast.walk(whole) if isinstance(node, ast.Attribute)}
        called = {id(node.func) for node in ast.walk(whole) if isinstance(node, ast.Call)}
        local = aliases | (BUILT_IN - stored)
        for node in ast.walk(whole):
            chain = _chain(node)
            if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
                fine = self._is_fine(chain, id(node) in called)
            elif isinstance(node, ast.Call):
                chain = _chain(node.func)
                fine = isinstance(whole, ast.FunctionDef) and self._may_call(node, chain, local)
            else:
                continue
            if not fine:
                raise OddError(f"{'.'.join(chain)} in {name}, line {node.lineno}")
        if taken := sorted({*ROOTS, *HOOKS, "CONSTANTS"} & stored):
            raise OddError(f"a variable {taken[0]} in {name}")

    def _is_fine(self, chain: list[str], called: bool) -> bool:
        """Return whether a name, from its root on, may stand where it stands."""
        full = ".".join(chain)
        if chain[0] == "torch":
            return called and len(chain) == 2 and allowed(chain[1])
        if chain[0] == "ops":
            known = len(chain) == 3 and chain[1] in ("aten", "prim")
            return called and known and allowed(chain[2])
        if chain[0] == "__torch__":
            return full in self._functions or full in self.types
        return True

    def _may_call(self, node: ast.Call, chain: list[str], local: set[str]) -> bool:
        if chain[0] in ROOTS:
            return True  # each such name is looked at by itself
        if len(chain) > 1:
            return chain[-1] in self._methods or allowed(chain[-1])
        if chain[0] == "getattr" and chain[0] in local:
            return (
                len(node.args) == 2
                and not node.keywords
                and _chain(node.args[0])[0] not in (*ROOTS, "?")
                and isinstance(node.args[1], ast.Constant)
                and isinstance(node.args[1].value, str)
                and node.args[1].value.isalnum()
            )
        return chain[0] in local

    def _aliases(self, whole: ast.AST) -> set[str]:
        """Return the local names that stand for functions or classes of the archive only."""
        bound = list(_bindings(whole))
        ours = self._functions | self.types
        return {name for name, said in bound if said in ours} - {
            name for name, said in bound if said not in ours
        }


def _registered() -> list[torch.FunctionSchema]:
    return list(torch._C._jit_get_all_schemas())


def _bindings(whole: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each name that is bound, with the full name it is bound to, or an empty one."""
    plain: dict[int, str] = {}
    for node in ast.walk(whole):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            plain[id(node.targets[0])] = ".".join(_chain(node.value))
    for node in ast.walk(whole):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id, plain.get(id(node), "")
        elif isinstance(node, ast.arg):
            yield node.arg, ""


def _look_at_definition(node: ast.AST, name: str, in_class: bool) -> None:
    """Raise OddError where a class or function is not defined as torch writes it."""
    if isinstance(node, ast.ClassDef):
        bases = [_chain(base) for base in node.bases]
        if (
            node.keywords
            or node.decorator_list
            or any(b not in ([k] for k in BASES) for b in bases)
        ):
            raise OddError(f"the bases of class {node.name} in {name}, line {node.lineno}")
    elif isinstance(node, ast.FunctionDef):
        inner = [each for each in ast.walk(node) if each is not node]
        nested = [e for e in inner if isinstance(e, ast.FunctionDef | ast.ClassDef)]
        if nested or node.decorator_list or node.name in HOOKS:
            raise OddError(f"{(nested or [node])[0].name} in {name}, line {node.lineno}")
    elif in_class and not isinstance(node, ast.Assign | ast.AnnAssign | ast.Pass):
        raise _form(node, name)


def _form(node: ast.AST, name: str) -> OddError:
    place = f"in {name}, line {getattr(node, 'lineno', 0)}"
    return OddError(f"code that torch does not write, {type(node).__name__} {place}")


def _parsed(name: str, content: bytes) -> ast.Module:
    try:
        # Bytes would be decoded as a comment in them says, which torch does not.
        tree = ast.parse(content.decode("ascii"))
        ast.unparse(tree).encode("ascii")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise OddError(f"{name}, which cannot be parsed") from error
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not isinstance(node, FORMS) or text:
            raise _form(node, name)
    return tree


def _chain(node: ast.AST) -> list[str]:
    """Return the names of ``a.b.c``; a call or subscript at its root is ``?``."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    names.append(node.id if isinstance(node, ast.Name) else "?")
    return names[::-1]
