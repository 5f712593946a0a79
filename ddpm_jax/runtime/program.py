"""What a compiled program does on each device: operations, bytes, kernels, messages.

The counts are the same at every compilation. They do not show caches, the workspace of a library,
or what runs at the same time.

The floating-point operations are those of the convolutions and matrix products of the traced
program. XLA counts the bytes of a loop's body once. Here they count as often as the main loop runs.
This is the loop with the most work: the fused train steps, their micro-batches, or the steps of a
sampler. So the little that is outside of the main loop counts as often too. For a GPU that is not
here, XLA counts nothing. Then the bytes are those of the operands and results of all kernels.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from ddpm_jax.runtime.memory import Memory, of_step

SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
         "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8}  # fmt: skip
# Operations that are no kernel: they name or rearrange what is there.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all",
        "opt-barrier", "partition-id", "replica-id", "domain"}  # fmt: skip
CALLS = ("call", "async-start", "conditional")
MESSAGES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
TO_THE_HOST = ("infeed", "outfeed", "send", "recv")
OPERATION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
# A convolution or a matrix product: of XLA, or of a library for GPUs.
PRODUCT = re.compile(
    r"= \(?([a-z]+\d+)\[[^=]* (?:(?:convolution|dot)\(|custom-call\([^\n]*"
    r'custom_call_target="__(?:cudnn\$conv|cublas))'
)


class Program(NamedTuple):
    """A compiled program; all numbers are for one device and one call.

    Attributes:
      memory: the memory that it needs; None if the compiler does not say.
      flops: floating-point operations.
      bytes: bytes that its operations read and write.
      kernels: number of operations that start a kernel.
      messages: {kind of collective: (number, bytes)}, such as "all-reduce" (`messages`).
      products: {dtype of the result: number}, the convolutions and matrix products in its text.
      donated: bytes of arguments that the results overwrite.
      host: number of transfers to or from the host inside the program.
      seconds: time of the compilation.
    """

    memory: Memory | None
    flops: float
    bytes: float
    kernels: int
    messages: dict[str, tuple[int, int]]
    products: dict[str, int]
    donated: int
    host: int
    seconds: float

    @property
    def message_bytes(self) -> int:
        """Return the bytes of all messages."""
        return sum(size for _, size in self.messages.values())


def facts(
    compiled: jax.stages.Compiled, seconds: float, traced: jax.stages.Traced, devices: int = 1
) -> Program:
    """Return what a compiled program does.

    Args:
      compiled: the program.
      seconds: the time of its compilation.
      traced: the program before compilation.
      devices: number of devices that share its work equally.
    """
    costs: Any = compiled.cost_analysis() or {}
    counts, by_times, moved = Counter(), Counter(), 0
    text, plan = compiled.as_text() or "", compiled.memory_analysis()
    for kind, result, operands, times in operations(text):
        counts[kind] += times
        by_times[times] += result
        moved += times * (result + operands)
    main = max(by_times, key=by_times.__getitem__, default=1)
    return Program(
        memory=of_step(compiled),
        flops=flops(traced.jaxpr) / devices,
        bytes=main * costs["bytes accessed"] if "bytes accessed" in costs else moved,
        kernels=sum(counts.values()),
        messages=messages(text),
        products=dict(Counter(match.group(1) for match in PRODUCT.finditer(text))),
        donated=plan.alias_size_in_bytes if plan else 0,
        host=sum(counts[kind] for kind in TO_THE_HOST),
        seconds=seconds,
    )


def flops(jaxpr: Any) -> float:
    """Return the floating-point operations of the convolutions and matrix products of a program.

    A multiply-add is two operations. A loop counts as often as it runs, if its length is fixed.

    Args:
      jaxpr: the traced program.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        out, params = eqn.outvars[0].aval, eqn.params
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2.0 * math.prod(out.shape) * math.prod(left[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, spec = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
            per_output = math.prod(kernel) / kernel[spec[0]]  # spec[0]: the axis of the outputs
            # Zeros between the rows of the input are not multiplied.
            total += 2.0 * math.prod(out.shape) * per_output / math.prod(params["lhs_dilation"])
        inner = [flops(p) for p in jax.tree.leaves(params, is_leaf=_is_jaxpr) if _is_jaxpr(p)]
        if inner:
            whole = max(inner) if eqn.primitive.name == "cond" else sum(inner)
            total += whole * (params["length"] if eqn.primitive.name == "scan" else 1)
    return total


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def operations(text: str) -> Iterator[tuple[str, int, int, int]]:
    """Yield each operation that starts a kernel: kind, bytes of result and operands, how often.

    An operation in the body of a loop runs as often as the loop. If the text does not say how often
    that is, it counts once.

    Args:
      text: the program (`compiled.as_text()`).
    """
    for found in _reached(text, CALLS):
        kind = found.kind
        if kind not in {"while", *CALLS, *FREE} and not kind.endswith(("-done", "-update")):
            yield kind.removesuffix("-start"), found.result, found.operands, found.times


def messages(text: str) -> dict[str, tuple[int, int]]:
    """Return the messages between the devices: {kind of collective: (number, bytes)}.

    The bytes are those of the whole array: the result, or the operand of a reduce-scatter. A TPU
    sends messages inside of fusions. The parts of a message that runs beside other fusions have the
    same chain. A reduce-scatter is an all-reduce in a computation of its own.

    Args:
      text: the program (`compiled.as_text()`).
    """
    sent = {}
    for found in _reached(text, (*CALLS, "fusion")):
        kind = found.kind.removesuffix("-start")
        if kind in MESSAGES:
            size = found.operands if kind == "reduce-scatter" else found.result
            if found.computation.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            key = found.chain or (found.computation, found.name)
            sent[key] = kind, found.times, found.times * size
    totals = {}
    for kind, times, size in sent.values():
        number, total = totals.get(kind, (0, 0))
        totals[kind] = number + times, total + size
    return totals


class _Operation(NamedTuple):
    """An operation of a program.

    Attributes:
      computation: the computation that it is in.
      name: its name.
      kind: such as "fusion".
      result: bytes of its result.
      operands: bytes of its operands.
      times: how often it runs.
      chain: what the parts of one message have in common; "" if it has no parts.
    """

    computation: str
    name: str
    kind: str
    result: int
    operands: int
    times: int
    chain: str


def _reached(text: str, calls: Sequence[str]) -> Iterator[_Operation]:
    """Yield the operations of a program, those in loops too.

    Args:
      text: the program.
      calls: kinds of operations; the computations that they call are included.
    """
    bodies = _computations(text)

    def walk(computation: str, times: int) -> Iterator[_Operation]:
        shapes: dict[str, str] = {}
        for line in bodies.get(computation, ()):
            match = OPERATION.match(line)
            if match is None:
                continue
            name, shape, kind, rest = match.groups()
            shapes[name] = shape
            given = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            operands = sum(_size(shapes.get(operand, "")) for operand in given)
            result = _size(shape)
            if kind.removesuffix("-start") in MESSAGES and shape.startswith("(("):
                result -= operands  # an asynchronous collective names its operands too
            chain = re.search(r'chain_id="(\d+)"', rest)
            part = chain.group(1) if chain else ""
            yield _Operation(computation, name, kind, result, operands, times, part)
            if kind == "while":
                if body := re.search(r"body=%?([\w.\-]+)", rest):
                    yield from walk(body.group(1), times * _trips(rest, bodies))
            elif kind in calls:
                for called in re.findall(r"(?:to_apply|calls|_computation)=%?([\w.\-]+)", rest):
                    yield from walk(called, times)

    yield from walk(_entry(text), 1)


def _trips(rest: str, bodies: dict[str, list[str]]) -> int:
    """Return how often a loop runs; 1 if the text does not say."""
    if known := re.search(r'known_trip_count[":\s{n]*"?(\d+)', rest):
        return int(known.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    lines = "\n".join(bodies.get(condition.group(1), ())) if condition else ""
    limit = re.search(r"ROOT .* compare\(.*?, %?([\w.\-]+)\), direction=LT", lines)
    value = limit and re.search(rf"%?{re.escape(limit.group(1))} = .*? constant\((\d+)\)", lines)
    return int(value.group(1)) if value else 1


def _computations(text: str) -> dict[str, list[str]]:
    """Return the lines of each computation of a program."""
    found, lines = {}, []
    for line in text.splitlines():
        if match := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = found.setdefault(match.group(1), [])
        else:
            lines.append(line)
    return found


def _entry(text: str) -> str:
    match = re.search(r"^ENTRY %?([\w.\-]+) ", text, re.MULTILINE)
    return match.group(1) if match else ""


def _size(shape: str) -> int:
    """Return the bytes of a result."""
    total = 0.0
    for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([0-9,]*)\]", shape):
        total += SIZES.get(dtype, 0) * math.prod(int(side) for side in sides.split(",") if side)
    return int(total)
