"""What was computed once, kept as arrays (.npz: data, not code) under all that it depends on."""

import hashlib
import json
import logging
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def load_or_make(
    directory: pathlib.Path, name: str, facts: Mapping[str, Any], make: Callable[[], Arrays]
) -> Arrays:
    """Return the arrays that are kept under these facts; make and keep them if there are none.

    A file that cannot be read is made anew. Where the directory cannot be written, the arrays are
    returned all the same, and a line says so.

    Args:
      directory: made if need be.
      name: the first part of the file's name, for people.
      facts: JSON of all that the arrays depend on; a file of other facts is another file.
      make: () -> the arrays.
    """
    key = json.dumps(facts, sort_keys=True)
    name = name.replace("/", "-")  # as in the name of the set "lsun/church_outdoor"
    path = directory / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if path.exists():
        try:
            with path.open("rb") as raw, np.load(raw) as file:
                if str(file["facts"]) == key:
                    return {name: file[name] for name in file.files if name != "facts"}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s) and is made anew", path, error)
    arrays = make()
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, facts=np.array(key), **arrays)
        os.replace(temporary, path)  # a reader sees the whole file or none
    except OSError as error:
        logger.warning("%s cannot be written (%s); it will be computed again", path, error.strerror)
    return arrays
