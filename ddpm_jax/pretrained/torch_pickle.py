"""What a pickle describes, found without running it, for pickles of dicts of torch's tensors.

A pickle is a program, and whoever unpickles it runs it: any function of any module. Here
`pickletools` merely lists its instructions, and the few that a dict of tensors needs are followed
by hand. Functions are never looked up: the three that are known by name are understood, and all
other names and instructions are refused.
"""

import pickletools
from typing import Any, BinaryIO, NamedTuple

import numpy as np

DTYPES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
ORDERED_DICT, TENSOR = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
# What following a senseless program can lead to
BROKEN = (ValueError, LookupError, TypeError, MemoryError, OverflowError, RecursionError)


class Refused(Exception):
    """Why a file is not read; the message is the middle of a sentence."""


class Global(NamedTuple):
    """A function or class that a pickle asks for; it stays a name."""

    name: str


class Storage(NamedTuple):
    """A row of `size` numbers, elsewhere in the file."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers. Nothing of it is checked yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def follow(file: BinaryIO) -> Any:
    """Follow the pickle at the file's position up to its end.

    Args:
      file: to read from; it is left behind the pickle.

    Returns:
      What the pickle describes, of None, bool, int, str, tuple, list, dict and `Tensor`.

    Raises:
      Refused: it is broken, or needs more than those.
    """
    try:
        return _Machine().run(file)
    except BROKEN as error:
        raise Refused(f"holds a broken pickle ({error})") from error


class _Machine:
    """The part of the pickle machine that a dict of tensors needs; it calls nothing by its name."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise Refused("holds a pickle without an end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(name[-1]))))
            case "APPEND" | "APPENDS":
                values = self.marked() if name == "APPENDS" else self.pop(1)
                self.top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self.marked() if name == "SETITEMS" else self.pop(2)
                if not all(isinstance(key, str) for key in values[::2]):
                    raise TypeError("a dict's key is not a string")
                self.top(dict).update(zip(values[::2], values[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                words = argument.split(" ") if name == "GLOBAL" else self.pop(2)
                stack.append(Global(_allowed(".".join(words))))
            case "BINPERSID":
                stack.append(_storage(*self.pop(1)))
            case "REDUCE":
                stack.append(_built(*self.pop(2)))
            case "BUILD":  # the attributes of a state_dict: versions of torch's modules
                self.pop(1)
                self.top(dict)
            case _:
                raise Refused(f"holds the pickle instruction {name}, which no tensor needs")

    def pop(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise IndexError("its stack is empty")
        values = self.stack[-n:]
        del self.stack[-n:]
        return values

    def marked(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} belongs")
        return self.stack[-1]


def _allowed(name: str) -> str:
    if name not in (ORDERED_DICT, TENSOR, PARAMETER, *DTYPES):
        raise Refused(f"asks for {name!r}, which is refused (and was not run)")
    return name


def _storage(identity: tuple) -> Storage:
    """Read a persistent id: ("storage", type, key, device, size[, view of another storage])."""
    kind, dtype, key, _, size, *view = identity
    known = kind == "storage" and isinstance(dtype, Global) and dtype.name in DTYPES
    if not known or view not in ([], [None]) or not isinstance(key, str) or type(size) is not int:
        raise Refused("refers to a storage in a way that is not understood")
    return Storage(key, np.dtype(DTYPES[dtype.name]), size)


def _built(function: Global, arguments: tuple) -> Any:
    """Return what the functions that are known would build."""
    if function == Global(ORDERED_DICT) and arguments == ():
        return {}
    if function == Global(TENSOR):
        storage, offset, shape, strides, *_ = arguments  # then: requires_grad, hooks
        if isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple):
            return Tensor(storage, offset, shape, strides)
    if function == Global(PARAMETER) and isinstance(arguments[0], Tensor):
        return arguments[0]  # then: requires_grad, hooks
    name = function.name if isinstance(function, Global) else type(function).__name__
    raise Refused(f"calls {name!r} in a way that is not understood")
