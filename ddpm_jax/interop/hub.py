"""Where a model is: a folder, or a model on the Hugging Face Hub, which is downloaded once."""

import os
import pathlib
import re
from typing import NamedTuple

from ddpm_jax.errors import PassingError, UserError
from ddpm_jax.runtime.files import absolute

FILES = ["*.json", "*.safetensors", "*.bin"]  # and no code
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
    """Return the folder of a model.

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
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{name} does not exist; to download the model of this name from the Hugging Face Hub, "
            "install the package huggingface_hub"
        ) from error
    try:
        found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FILES)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        raise PassingError(
            f"{name} is no path, and the Hub does not send it: {lines[0]}"
        ) from error
    folder = pathlib.Path(found)
    return Source(folder, name, folder.name)  # a snapshot's folder is named by its commit
