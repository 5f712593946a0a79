"""Where a model is: a folder, or a model on the Hugging Face Hub, which is downloaded once."""

import os
import pathlib
import re
from typing import NamedTuple

from ddpm_jax.errors import PassingError, UserError
from ddpm_jax.runtime.files import absolute

SETTINGS = "*.json"
WEIGHTS = ("*diffusion_pytorch_model.safetensors", "*diffusion_pytorch_model.bin")
ID = re.compile(r"[\w.-]+/[\w.-]+")


class Source(NamedTuple):
    """A folder, and where its content is from.

    Attributes:
      folder: the folder on this machine.
      name: the path or the Hub's id that the user gave.
      revision: the commit of a model of the Hub; "" for a path.
    """

    folder: pathlib.Path
    name: str
    revision: str = ""


def locate(name: str | os.PathLike, revision: str | None = None) -> Source:
    """Return the folder of a model; of a model of the Hub only the settings are downloaded.

    Args:
      name: a path; or an id of the Hub such as "google/ddpm-church-256", if no such path exists.
      revision: commit, tag or branch of a model of the Hub; None is its main branch.

    Raises:
      UserError: there is no such path, and `name` is no id or huggingface_hub is not installed; a
        revision is given for a path.
      PassingError: the Hub cannot be reached.
    """
    name = os.fspath(name)
    folder = absolute(name)
    if folder.exists():
        if revision:
            raise UserError(f"revision {revision!r} is given, but {name} is a path; leave it out")
        return Source(folder, name)
    if not ID.fullmatch(name):
        raise UserError(
            f"{name} does not exist; pass a folder, or an id such as google/ddpm-cat-256"
        )
    folder = _download(name, revision, SETTINGS)
    return Source(folder, name, folder.name)  # a snapshot's folder is named by its commit


def fetch_weights(source: Source) -> None:
    """Download the weights of a model of the Hub into its folder: .safetensors, otherwise .bin.

    Raises:
      PassingError: the Hub cannot be reached.
    """
    for pattern in WEIGHTS if source.revision else ():
        if any(_download(source.name, source.revision, pattern).rglob(pattern)):
            return


def _download(name: str, revision: str | None, pattern: str) -> pathlib.Path:
    """Download files of a model, if they are not in the cache, and return the model's folder."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise UserError(
            f"{name} does not exist; to download the model of this name from the Hugging Face Hub, "
            "install the package huggingface_hub"
        ) from error
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=pattern)
    except (OSError, ValueError, HfHubHTTPError) as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        raise PassingError(
            f"{name} is no path, and the Hub does not send it: {lines[0]}"
        ) from error
    return pathlib.Path(found)
