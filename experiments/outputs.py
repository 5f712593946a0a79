"""The files that a main writes: their paths, their default names, and early checks of both.

A main gets its paths before the work, so that a path that cannot be written costs no time. The
default name contains the settings, so two files with the same name contain the same images.
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
from ddpm_jax.runtime.files import absolute, replacing

SUFFIXES = (".png", ".npz")
MAX_NAME = 150  # characters of a default name; file systems allow 255 bytes


def stem(out: str | None, directory: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of a .png and an .npz without their suffixes, for the flag --out.

    Args:
      out: the flag --out. A directory, or a path that ends with /, receives files with the default
        name. The suffixes .png and .npz are accepted. None is the default.
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
    """Create the directory if it does not exist, and check that files can be written there.

    Args:
      directory: the directory of the files.
      out: the flag --out, for the message; None if the flag is not set or the main has no --out.
      names: the names of the files.

    Raises:
      UserError: a file cannot be written.
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
    """Return the error for a path that cannot be written; the message names --out if it is set."""
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
    """Write <path>.png and <path>.npz atomically, and print both paths.

    Args:
      path: the path without suffix, from `stem`.
      out: the flag --out, for the message.
      picture: [H, W, C] uint8.
      arrays: name -> array, the content of the .npz file.
      settings: all that the arrays depend on. The .npz file contains them too, as a JSON string.

    Raises:
      UserError: a file cannot be written.
    """
    png, npz = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
    try:
        with replacing(npz) as part:
            content: dict[str, Any] = {"settings": np.array(_json(settings)), **arrays}
            np.savez(part, **content)
        grids.save_png(png, picture)
    except OSError as error:
        raise not_writable(path, out, error) from error
    print(f"grid: {png}{os.linesep}images: {npz}")


def save_picture(path: pathlib.Path, picture: np.ndarray, out: str | None = None) -> None:
    """Write a picture [H, W, C] uint8 as PNG, atomically.

    Raises:
      UserError: the file cannot be written; the message names the flag --out if it is set.
    """
    try:
        grids.save_png(path, picture)
    except OSError as error:
        raise not_writable(path, out, error) from error


def save_figure(path: pathlib.Path, figure: Figure, out: str | None = None) -> None:
    """Write a Matplotlib figure as PNG, atomically.

    Raises:
      UserError: the file cannot be written; the message names the flag --out if it is set.
    """
    try:
        with replacing(path) as part:
            figure.savefig(part)
    except OSError as error:
        raise not_writable(path, out, error) from error


def join(*parts: str | None) -> str:
    """Join parts to a file name. None is left out. A digest replaces the end of a long name."""
    name = "_".join(part for part in parts if part)
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 9]}_{digest(name)}"


def word(text: str) -> str:
    """Return a text as part of a file name: its letters and digits, and a digest of the text."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24]
    return f"{plain}-{digest(text)}".lstrip("-")


def file_word(path: str) -> str:
    """Return a file as part of another file's name: its own name and a digest of its content."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", absolute(path).stem).strip("-")[:24]
    return f"{plain}-{digest(absolute(path).read_bytes())}".lstrip("-")


def digest(content: str | bytes) -> str:
    """Return the first 8 hexadecimal digits of the SHA-256 of a text or of bytes."""
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()[:8]


def sampling_words(own: Any, chosen: Any) -> list[str]:
    """Return the sampling fields that differ from the config of the run, as parts of a file name.

    Args:
      own: `config.sample` of the run.
      chosen: `config.sample` with the overrides of this call.
    """
    short = {"sampler": "{}", "num_steps": "{}steps", "timesteps": "{}", "guidance": "w{}"}
    return [
        pattern.format(getattr(chosen, name))
        for name, pattern in short.items()
        if getattr(chosen, name) != getattr(own, name)
    ]


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, default=str)
