"""Weights of PyTorch layers as our parameters, and back.

    layer         torch, [out, in, ...]          ours, [..., in, out]
    convolution   weight [out, in, h, w]         kernel [h, w, in, out]
    dense         weight [out, in]               kernel [in, out]
    the same as a 1x1 convolution                kernel [in, out]
    query ...     weight [heads d, in]           kernel [in, heads, d]
    norm          weight [C]                     scale [C]
    table         weight [N, D]                  embedding [N, D]

A network is described by pairs (place, name): the place of a weight in our tree, such as
("down_0_0", "conv_1", "kernel"), and the name of the same weight in torch's state_dict.
"""

import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.pretrained.torch_file import read_tensors
from ddpm_jax.runtime.files import replacing
from ddpm_jax.types import Params

Place = tuple[str, ...]
State = dict[str, np.ndarray]
TABLES = ("embedding", "position")  # they have the same axes in both
POINTWISE = ("shortcut", "quant", "post_quant")  # our Dense layers that are 1x1 convolutions there


def read(file: str | os.PathLike) -> State:
    """Read the weights of a .safetensors file, or of a file of `torch.save` without its code.

    Raises:
      UserError: the file cannot be read, or it is .safetensors and the package is not installed.
    """
    file = pathlib.Path(file)
    if file.suffix != ".safetensors":
        return read_tensors(file)
    try:
        import safetensors.numpy  # optional: only other libraries' weights need it
    except ImportError as error:
        raise UserError(f"{file} needs the package safetensors: pip install safetensors") from error
    # The last three: a type that numpy lacks, and a header that lies about the file.
    wrong = (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError)
    try:
        return safetensors.numpy.load_file(file)
    except wrong as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"{file} cannot be read ({reason}); get a whole copy of it") from error


def write(file: str | os.PathLike, state: Mapping[str, np.ndarray]) -> None:
    """Write weights as a .safetensors file, atomically.

    Raises:
      UserError: the package safetensors is not installed.
    """
    try:
        import safetensors.numpy  # optional: only other libraries' weights need it
    except ImportError as error:
        raise UserError(
            "to write weights for other libraries, install the package safetensors: "
            "pip install safetensors"
        ) from error
    whole = {name: np.ascontiguousarray(value, np.float32) for name, value in state.items()}
    with replacing(file) as part:
        safetensors.numpy.save_file(whole, part, metadata={"format": "pt"})


def to_params(
    abstract: Params,
    pairs: Iterable[tuple[Place, str]],
    state: Mapping[str, np.ndarray],
    source: str | os.PathLike,
) -> Params:
    """Return the weights of a state_dict as our parameters, float32.

    Args:
      abstract: the shapes of our parameters.
      pairs: the place and the name of every weight.
      state: the weights by their names.
      source: where the weights are from, for the messages.

    Raises:
      UserError: a weight is missing, left over, or of another shape.
    """
    params, left = _copy(abstract), dict(state)
    for place, name in pairs:
        parent, leaf = _parent(params, place)
        wanted = parent[leaf].shape
        if name not in left:
            raise UserError(f"{source} has no weight {name!r}, which this network needs")
        tensor, shape = left.pop(name), _their_shape(place, wanted)
        if _without_ones(tensor.shape) != _without_ones(shape):
            raise UserError(
                f"{source}: {name} has the shape {list(tensor.shape)}, but this network needs "
                f"{list(shape)}"
            )
        parent[leaf] = _to_ours(place, tensor.reshape(shape).astype(np.float32)).reshape(wanted)
    if left:
        raise UserError(f"{source} has a weight that nothing uses: {next(iter(left))!r}")
    return params


def to_state(params: Params, pairs: Iterable[tuple[Place, str]]) -> State:
    """Return our parameters as a state_dict, the inverse of `to_params`."""
    state = {}
    for place, name in pairs:
        parent, leaf = _parent(params, place)
        state[name] = _to_theirs(place, np.asarray(parent[leaf], np.float32))
    return state


def _to_ours(place: Place, tensor: np.ndarray) -> np.ndarray:
    """Return a weight in our order of axes, before its heads are split."""
    if place[-1] != "kernel":
        return tensor
    spatial = tuple(range(2, tensor.ndim))
    return tensor.transpose(*spatial, 1, 0)


def _to_theirs(place: Place, value: np.ndarray) -> np.ndarray:
    """Return a weight in torch's order of axes."""
    *_, layer, leaf = place
    if leaf in TABLES:
        return value
    if leaf != "kernel":
        return value.reshape(-1)
    if layer in ("query", "key", "value"):  # [C, heads, d]
        value = value.reshape(len(value), -1)
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.T[:, :, None, None] if layer in POINTWISE else value.T


def _their_shape(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return torch's shape of a weight that has `shape` here."""
    *_, layer, leaf = place
    if leaf in TABLES:
        return shape
    if leaf != "kernel":
        return (math.prod(shape),)
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    ones = (1, 1) if layer in POINTWISE else ()
    return (math.prod(shape[1:]), shape[0], *ones)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape [out, in] without the sides of a 1x1 convolution, which may be left out."""
    return shape[:2] if shape[2:] in ((1,), (1, 1)) else shape


def _parent(params: Params, place: Place) -> tuple[Any, str]:
    """Return the mapping that holds a weight, and the weight's name in it."""
    for name in place[:-1]:
        params = params[name]
    return params, place[-1]


def _copy(params: Params) -> Params:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in params.items()}
