"""Read tensors from a file of `torch.save`, without torch and without running code of the file.

Such a file holds a pickle that describes a dict of tensors, and the raw bytes of the tensors in
"storages". There are two formats:

    zip (since torch 1.6)   <name>/data.pkl, and <name>/data/<key> for every storage, uncompressed
    legacy                  five pickles: a magic number, a protocol version, the writer's machine,
                            the dict, the list of the storages' keys; then for every storage its
                            int64 length and its bytes

`torch_pickle` reads the pickles; it runs no code.
"""

import io
import math
import os
import pathlib
import zipfile
from typing import Any, BinaryIO

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.pretrained.torch_pickle import Refused, Storage, Tensor, follow

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a dict of tensors that `torch.save` wrote.

    Args:
      path: a file in the zip or the legacy format, written on a little-endian machine.

    Returns:
      {name: tensor} in the order of the file; each tensor is a separate array in C order.

    Raises:
      UserError: the file cannot be read, is truncated, or holds anything but a dict of dense,
        non-empty tensors of the types in `torch_pickle.DTYPES`. The message names the first wrong
        thing. No code of the file is run.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(0)
            zipped = file.read(4) == b"PK\3\4"
            file.seek(0)
            return _read_zip(file) if zipped else _read_legacy(file, end)
    except Refused as refused:
        raise UserError(
            f"{path} {refused}; expected a dict of tensors (a state_dict) written by torch.save"
        ) from refused
    # zipfile also raises EOFError and RuntimeError for a bad archive.
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({error}); check that the file exists and is complete"
        ) from error


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        programs = [name for name in infos if name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise Refused(f"is a zip archive with {len(programs)} files data.pkl; torch writes one")
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
            raise Refused("is a compressed zip archive, which torch does not write")
        root = programs[0].removesuffix("data.pkl")
        if root + "byteorder" in infos and archive.read(root + "byteorder") != b"little":
            raise Refused("was written on a big-endian machine")

        def read(storage: Storage) -> bytes:
            name = f"{root}data/{storage.key}"
            if name not in infos:
                raise Refused(f"lacks the storage {name}")
            return archive.read(name)

        tensors = _tensors(follow(io.BytesIO(archive.read(programs[0]))))
        return _arrays(tensors, {t.storage.key: read(t.storage) for t in tensors.values()})


def _read_legacy(file: BinaryIO, end: int) -> dict[str, np.ndarray]:
    try:
        magic = follow(file)
    except Refused:
        magic = None
    if magic != MAGIC:
        raise Refused("is in neither of torch's formats, or is truncated")
    if follow(file) != PROTOCOL:
        raise Refused(f"has another version than {PROTOCOL} of torch's legacy format")
    machine = follow(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Refused("was not written on a little-endian machine")
    tensors = _tensors(follow(file))
    storages = {t.storage.key: t.storage for t in tensors.values()}
    keys = follow(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refused("lacks the list of its storages")
    if set(keys) != set(storages):
        raise Refused("lists other storages than its tensors refer to")
    blocks = {}
    for key in keys:
        size = int.from_bytes(file.read(8), "little")
        if size != storages[key].size or size * storages[key].dtype.itemsize > end - file.tell():
            raise Refused(f"is truncated or damaged at the storage {key}")
        blocks[key] = file.read(size * storages[key].dtype.itemsize)
    return _arrays(tensors, blocks)


def _tensors(found: Any) -> dict[str, Tensor]:
    """Return `found` if it is a dict of tensors; otherwise raise `Refused`."""
    if not isinstance(found, dict):
        raise Refused(f"holds a {type(found).__name__}, not a dict")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Refused(f"holds a {type(value).__name__} at {name!r}, not a tensor")
    return found


def _arrays(tensors: dict[str, Tensor], blocks: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Return the tensors as arrays, copied from the bytes of their storages.

    Args:
      tensors: name -> a view of a storage.
      blocks: key of a storage -> its bytes.

    Raises:
      Refused: a tensor does not fit into its storage.
    """
    arrays = {}
    for name, (storage, offset, shape, strides) in tensors.items():
        block = blocks[storage.key]
        if len(block) != storage.size * storage.dtype.itemsize:
            raise Refused(f"has {len(block)} bytes for the {storage.size} numbers of {name!r}")
        sizes = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in sizes):
            raise Refused(f"gives {name!r} an impossible shape or strides")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        # With strides of 0 a small file could describe a huge tensor; the first bound refuses it.
        if not 0 < math.prod(shape) <= storage.size or last >= storage.size:
            raise Refused(f"gives {name!r} an empty shape, or one beyond the end of its storage")
        flat = np.frombuffer(block, storage.dtype)[offset:]
        steps = [s * flat.itemsize if n > 1 else 0 for n, s in zip(shape, strides, strict=True)]
        arrays[name] = np.lib.stride_tricks.as_strided(flat, shape, steps).copy(order="C")
    return arrays
