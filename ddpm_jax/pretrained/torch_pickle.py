"""Read a pickle of a dict of torch's tensors without running the pickle.

A pickle is a program: to unpickle is to run it, and it can call any function of any module. Here
`pickletools` only lists its instructions. We interpret the few instructions that a dict of tensors
needs. No function is ever looked up or called: we know three functions by their names and what they
would build. All other names and instructions are refused.
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
# Errors that a malformed program can cause in the interpreter below.
BROKEN = (ValueError, LookupError, TypeError, MemoryError, OverflowError, RecursionError)


class Refused(Exception):
    """The reason why a file is refused; the message continues a sentence after the file's name."""


class Global(NamedTuple):
    """The name of a function or class that a pickle asks for; it is never imported."""

    name: str


class Storage(NamedTuple):
    """A flat array of `size` numbers; its bytes are stored under `key` elsewhere in the file."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers, not bytes. They are not checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def follow(file: BinaryIO) -> Any:
    """Interpret the pickle that begins at the file's position.

    Args:
      file: is read up to the end of the pickle.

    Returns:
      The object that the pickle describes, made of None, bool, int, str, tuple, list, dict and
      `Tensor`.

    Raises:
      Refused: the pickle is broken, or needs other types.
    """
    try:
        return _Machine().run(file)
    except BROKEN as error:
        raise Refused(f"holds a broken pickle ({error})") from error


class _Machine:
    """The part of the pickle machine that a dict of tensors needs; calls no function by name."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []  # lengths of the stack at each MARK
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
            case "BUILD":  # sets attributes of the dict (versions of torch's modules); ignored
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
            raise TypeError(f"found a {type(self.stack[-1]).__name__}, expected a {kind.__name__}")
        return self.stack[-1]


def _allowed(name: str) -> str:
    if name not in (ORDERED_DICT, TENSOR, PARAMETER, *DTYPES):
        raise Refused(f"asks for {name!r}, which is not allowed and was not run")
    return name


def _storage(identity: tuple) -> Storage:
    """Return the storage of a persistent id.

    The id is ("storage", type, key, device, size[, view of another storage]).
    """
    kind, dtype, key, _, size, *view = identity
    known = kind == "storage" and isinstance(dtype, Global) and dtype.name in DTYPES
    if not known or view not in ([], [None]) or not isinstance(key, str) or type(size) is not int:
        raise Refused("refers to a storage in an unknown form")
    return Storage(key, np.dtype(DTYPES[dtype.name]), size)


def _built(function: Global, arguments: tuple) -> Any:
    """Return the object that a call of one of the known functions would build."""
    if function == Global(ORDERED_DICT) and arguments == ():
        return {}
    if function == Global(TENSOR):
        storage, offset, shape, strides, *_ = arguments  # the rest: requires_grad, hooks
        if isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple):
            return Tensor(storage, offset, shape, strides)
    if function == Global(PARAMETER) and isinstance(arguments[0], Tensor):
        return arguments[0]  # the rest: requires_grad, hooks
    name = function.name if isinstance(function, Global) else type(function).__name__
    raise Refused(f"calls {name!r} with unknown arguments")
