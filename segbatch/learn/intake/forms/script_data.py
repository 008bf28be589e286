"""The pickles of a TorchScript archive, looked at without unpickling them."""

from __future__ import annotations

import pickletools
import re

from segbatch.learn.intake.forms.script_code import OddError

_WRITTEN = """
    PROTO STOP MARK EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT
    SETITEM SETITEMS NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BUILD NEWOBJ BINPERSID
"""
# What torch's own writer uses; any other could be read in one way here and in another by torch.
OPCODES = frozenset(_WRITTEN.split())
PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage"
    r"|torch\.jit\._pickle (build_(int|double|bool|tensor)list|restore_type_tag)",
    re.ASCII,
)


def look_at_data(name: str, content: bytes, types: set[str]) -> None:
    """Raise OddError where a pickle makes anything but plain values, tensors and ``types``.

    Parameters
    ----------
    name
        Of the file, for errors.
    content
        The pickle.
    types
        Full names of the archive's own classes.
    """
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in OPCODES:
                raise OddError(f"a pickle that torch did not write, {opcode.name} in {name}")
            told = str(argument)
            if opcode.name == "GLOBAL" and not (
                PLAIN.fullmatch(told) or told.replace(" ", ".") in types
            ):
                raise OddError(f"an object of {told.replace(' ', '.')} in {name}")
            if opcode.name == "BINUNICODE" and "torch.classes" in told:
                raise OddError(f"an object of torch.classes in {name}")
    except (ValueError, IndexError, OverflowError) as error:
        raise OddError(f"{name}, which is no pickle") from error
