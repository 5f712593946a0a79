"""Files: written whole or not at all, computed once and kept, published by others and verified.

TFDS's own downloads are not used: without a network they retry for minutes, and a stalled
connection holds them for ever. Here both end in seconds, with one line that says what to do.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 30  # seconds
BLOCK = 1 << 20  # bytes

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Give a temporary path to write to; at the end the file there replaces the one at `path`.

    A reader sees the old file or the new one, whole. After an error the old file stays, and nothing
    of the new one. The directory is made if need be.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def to_json(content: Any, **options: Any) -> str:
    """Return `json.dumps(content, **options)`, with null for NaN and infinities, which JSON lacks.

    Args:
      content: dicts, lists, tuples, numbers and so on.
      **options: of `json.dumps`.
    """

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(value) for key, value in part.items()}
        if isinstance(part, (list, tuple)):
            return [finite(value) for value in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(content), allow_nan=False, **options)


def load_or_make(
    directory: pathlib.Path, name: str, facts: Mapping[str, Any], make: Callable[[], Arrays]
) -> Arrays:
    """Return the arrays that are kept under these facts; make and keep them if there are none.

    They are kept as .npz, which is data and not code. A file that cannot be read is made again.
    Where the directory cannot be written, the arrays are returned all the same, and a line says so.

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
            logger.warning("%s cannot be read (%s) and is made again", path, error)
    arrays = make()
    try:
        with replacing(path) as part:
            np.savez(part, allow_pickle=False, facts=np.array(key), **arrays)
    except OSError as error:
        logger.warning("%s cannot be written (%s); it will be computed again", path, error.strerror)
    return arrays


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file that somebody else publishes.

    Attributes:
      url: where.
      size: in bytes.
      sha256: of the whole file, hexadecimal.
    """

    url: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """The last part of the URL; also the name under which it may be placed by hand."""
        return self.url.rsplit("/", 1)[1]


def fetch(archive: Archive, name: str, download_dir: str, manual_dir: str = "") -> pathlib.Path:
    """Return the path of a verified copy of the archive, downloading it if there is none.

    It is looked for in `<manual_dir>/<name>`, in `manual_dir`, and where an earlier call has put
    it. (The directory per name is for files that several sets call by the same name.)

    Args:
      archive: the file.
      name: of what the file is for, e.g. the set.
      download_dir: where downloads are kept.
      manual_dir: where files are placed by hand; "" is `<download_dir>/manual`.

    Raises:
      UserError: a file placed by hand is not the upstream one, or there is none and the download
        fails.
    """
    manual = pathlib.Path(manual_dir or os.path.join(download_dir, "manual")).expanduser()
    if manual_dir and not manual.is_dir():
        raise UserError(f"data.manual_dir {manual_dir} is not a directory")
    for path in (manual / name / archive.filename, manual / archive.filename):
        if path.is_file():
            found = sha256(path)
            if found == archive.sha256:
                return path
            raise UserError(
                f"{path} is not {archive.url}: expected sha256 {archive.sha256}, found {found}; "
                f"replace it, or remove it to let it be downloaded (a file of that name for "
                f"another set belongs into a directory named after that set)"
            )
    path = pathlib.Path(download_dir) / name / archive.filename
    if path.is_file() and sha256(path) == archive.sha256:
        return path
    _download(archive, path, manual / name)
    return path


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(archive: Archive, path: pathlib.Path, manual: pathlib.Path) -> None:
    """Download and verify an archive. The file at `path` is always complete."""
    import requests  # here, so that only downloads wait for these imports
    from tqdm import tqdm

    logger.info("downloading %s (%d bytes)", archive.url, archive.size)
    by_hand = (
        f"run again, or place {archive.filename} (sha256 {archive.sha256}) in {manual} by hand"
    )
    try:
        with replacing(path) as part, part.open("wb") as file:
            digest = hashlib.sha256()
            bar = tqdm(total=archive.size, unit="B", unit_scale=True, disable=None)
            timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
            with bar, requests.get(archive.url, stream=True, timeout=timeout) as response:
                response.raise_for_status()
                for block in response.iter_content(BLOCK):
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
            if digest.hexdigest() != archive.sha256:
                raise UserError(
                    f"what {archive.url} sent has sha256 {digest.hexdigest()}, expected "
                    f"{archive.sha256}; {by_hand}"
                )
    except requests.RequestException as error:
        raise UserError(f"cannot download {archive.url} ({_reason(error)}); {by_hand}") from error


def _reason(error: Exception) -> str:
    """Return the innermost cause in a few words; requests wraps it in pages of its own."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    cause: BaseException = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper
    return str(cause) or type(cause).__name__
