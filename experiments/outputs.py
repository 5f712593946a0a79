"""The files that a main writes: where, under which names, and that they can be written at all.

A main asks for its paths before the work, so that a path that cannot be written costs no time. The
default name tells apart what other settings draw: two files of one name hold the same images.
"""

import hashlib
import json
import os
import pathlib
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ddpm_jax.errors import UserError
from ddpm_jax.figures import grids
from ddpm_jax.runtime.files import replacing

SUFFIXES = (".png", ".npz")
MAX_NAME = 150  # characters of a default name; file systems allow 255 bytes


def absolute(path: str | os.PathLike) -> pathlib.Path:
    """Return the absolute path; ~ is the home directory."""
    return pathlib.Path(os.path.expanduser(path)).absolute()


def stem(out: str | None, directory: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of a .png and an .npz without their suffixes, for the flag --out.

    Args:
      out: the flag. A directory, or a path that ends with /, receives files of the default name.
        The suffixes .png and .npz are accepted.
      directory: the default directory.
      name: the default name.

    Raises:
      UserError: the two files cannot be written there.
    """
    path = absolute(out) if out else directory / name
    if out and (out.endswith(("/", os.sep)) or path.is_dir()):
        path = path / name
    elif out and path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    check_writable(path.parent, out, [path.name + suffix for suffix in SUFFIXES])
    return path


def check_writable(directory: pathlib.Path, out: str | None, names: Sequence[str] = ()) -> None:
    """Make the directory if need be, and refuse it if files of these names cannot be written.

    Args:
      directory: of the files.
      out: the flag --out for the message; None if it is not given or the main has none.
      names: of the files.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in names or ("probe",):
            if (directory / name).is_dir():
                raise UserError(
                    f"{directory / name} is a directory, but a file of this name is due"
                )
            probe = directory / f".{uuid.uuid4().hex}-{name}"
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise not_writable(directory, out, error) from error


def not_writable(path: pathlib.Path, out: str | None, error: OSError) -> UserError:
    """Return the error for a path that cannot be written."""
    what = f"--out={out}" if out else str(path)
    reason = error.strerror or error
    if isinstance(error, FileExistsError):  # from mkdir
        reason = f"{error.filename} is a file, not a directory"
    return UserError(f"{what} cannot be written ({reason}); choose another path")


def write(
    path: pathlib.Path,
    out: str | None,
    picture: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
) -> None:
    """Write <path>.png and <path>.npz, each whole or not at all, and print both paths.

    Args:
      path: of `stem`.
      out: the flag --out, for the message.
      picture: [H, W, C] uint8.
      arrays: of the .npz. It also receives `settings`, a string of JSON.
      settings: all that the arrays depend on.
    """
    png, npz = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
    try:
        with replacing(npz) as part:
            np.savez(part, settings=np.array(_json(settings)), **arrays)
        grids.save_png(png, picture)
    except OSError as error:
        raise not_writable(path, out, error) from error
    print(f"grid: {png}{os.linesep}images: {npz}")


def save_picture(path: pathlib.Path, picture: np.ndarray, out: str | None = None) -> None:
    """Write a picture [H, W, C] uint8 as PNG, whole or not at all."""
    try:
        grids.save_png(path, picture)
    except OSError as error:
        raise not_writable(path, out, error) from error


def save_figure(path: pathlib.Path, figure: Figure, out: str | None = None) -> None:
    """Write a figure of Matplotlib as PNG, whole or not at all."""
    try:
        with replacing(path) as part:
            figure.savefig(part)
    except OSError as error:
        raise not_writable(path, out, error) from error


def join(*parts: str | None) -> str:
    """Return a file name of these parts; None is left out, and a long name is cut to a digest."""
    name = "_".join(part for part in parts if part)
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 9]}_{digest(name)}"


def word(text: str) -> str:
    """Return a text as a part of a file name: its letters and digits, and a digest of all of it."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24]
    return f"{plain}-{digest(text)}".lstrip("-")


def file_word(path: str) -> str:
    """Return a file as a part of a file name: its own name, and a digest of its content."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", absolute(path).stem).strip("-")[:24]
    return f"{plain}-{digest(absolute(path).read_bytes())}".lstrip("-")


def digest(content: str | bytes) -> str:
    """Return 8 hexadecimal digits of a SHA-256."""
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()[:8]


def sampling_words(own: Any, chosen: Any) -> list[str]:
    """Return the fields of `config.sample` that differ from the run's own, as parts of a name."""
    short = {"sampler": "{}", "num_steps": "{}steps", "timesteps": "{}", "guidance": "w{}"}
    return [
        pattern.format(getattr(chosen, name))
        for name, pattern in short.items()
        if getattr(chosen, name) != getattr(own, name)
    ]


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, default=str)
