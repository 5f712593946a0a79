"""Files: atomic writes, a cache of arrays, and verified downloads.

The downloads do not use TFDS. Without a network, TFDS retries for minutes, and it waits forever on
a stalled connection. Here both end in seconds, with one line that says what to do.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import logging
import math
import os
import pathlib
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 30  # seconds
BLOCK = 1 << 20  # bytes

logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def absolute(path: str | os.PathLike) -> pathlib.Path:
    """Return the absolute path; ~ is the home directory."""
    return pathlib.Path(os.path.expanduser(path)).absolute()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path to write to; at the end of `with`, this file replaces `path`.

    A reader sees the complete old file or the complete new file. After an error the old file is
    still there, and the new file is removed. The directory is created if it does not exist.

    Raises:
      OSError: the directory or the file cannot be written.
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
      content: dicts, lists, tuples, numbers and other values that `json.dumps` accepts.
      **options: options of `json.dumps`.
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
    """Return the cached arrays for these facts; if there are none, make and cache them.

    The cache is an .npz file, which contains data and no code. If the file cannot be read, it is
    made again. If the directory cannot be written, the arrays are returned and a warning is logged.

    Args:
      directory: the directory of the cache; it is created if it does not exist.
      name: the readable first part of the file name.
      facts: all that the arrays depend on, as JSON values. Other facts give another file.
      make: () -> the arrays, by name.
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
            kept: dict[str, Any] = {**arrays, "facts": np.array(key)}
            np.savez(part, **kept)
    except OSError as error:
        logger.warning("%s cannot be written (%s); it will be computed again", path, error.strerror)
    return arrays


@dataclasses.dataclass(frozen=True)
class Package:
    """A Debian package that contains published files.

    Attributes:
      name: the name of the package.
      directory: the directory in which the package installs the files.
    """

    name: str
    directory: str


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
      url: the URL of the file.
      size: size of the file in bytes.
      sha256: SHA-256 of the file, 64 hexadecimal digits.
      gzipped: whether the file is compressed by gzip, and `size` and `sha256` are those of its
        uncompressed content. Distributors compress the same content into different files.
      package: the Debian package that contains the file; None if there is no package.
    """

    url: str
    size: int
    sha256: str
    gzipped: bool = False
    package: Package | None = None

    @property
    def filename(self) -> str:
        """The last part of the URL. A file that is placed by hand must have this name."""
        return self.url.rsplit("/", 1)[1]


def fetch(archive: Archive, name: str, download_dir: str, manual_dir: str = "") -> pathlib.Path:
    """Return the path of a verified copy of the archive; download it if there is no copy.

    The search order is `<manual_dir>/<name>`, `manual_dir`, the directory of the Debian package,
    then the download of an earlier call. `<manual_dir>/<name>` is for file names that several data
    sets share.

    Args:
      archive: the published file.
      name: the name of its purpose, such as the data set.
      download_dir: the directory of the downloads.
      manual_dir: the directory of files that are placed by hand; "" is `<download_dir>/manual`.

    Raises:
      UserError: a file that was placed by hand or by the package differs from the published file,
        `manual_dir` is not a directory, or there is no copy and the download fails.
    """
    place = manual_dir or os.path.join(download_dir, "manual")
    manual = pathlib.Path(os.path.expanduser(place))
    if manual_dir and not manual.is_dir():
        raise UserError(f"data.manual_dir {manual_dir} is not a directory")
    remedy = (
        "replace it, or remove it to let it be downloaded (a file of that name for another set "
        "belongs into a directory named after that set)"
    )
    remedies = {manual / name: remedy, manual: remedy}
    if package := archive.package:
        repair = f"repair it: apt install --reinstall {package.name}"
        remedies[pathlib.Path(package.directory)] = repair
    for directory, remedy in remedies.items():
        path = directory / archive.filename
        if os.path.lexists(path):
            if fault := _fault(archive, path):
                raise UserError(f"{path} is not {archive.url}: {fault}; {remedy}")
            return path
    path = pathlib.Path(download_dir) / name / archive.filename
    if path.is_file() and not _fault(archive, path):
        return path
    _download(archive, path, manual / name)
    return path


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(archive: Archive, path: pathlib.Path) -> str:
    """Return what is wrong with a copy of the archive; "" if nothing is wrong."""
    if not path.is_file():
        return "it is not a file"
    try:
        found = _content_sha256(path, archive.size) if archive.gzipped else sha256(path)
    except (OSError, EOFError, zlib.error) as error:  # the last two: a damaged gzip file
        return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
    if found == archive.sha256:
        return ""
    return f"expected {_identity(archive)}, found {found}"


def _identity(archive: Archive) -> str:
    """Return the checksum of the archive, in words."""
    return f"{'uncompressed ' if archive.gzipped else ''}sha256 {archive.sha256}"


def _content_sha256(path: pathlib.Path, size: int) -> str:
    """Return the SHA-256 of a gzip file's content, or a phrase if it is longer than `size` bytes.

    A small file can have a content that fills the memory or never seems to end. So at most
    `size` + 1 bytes are uncompressed, in blocks.
    """
    digest, left = hashlib.sha256(), size + 1
    with gzip.open(path) as file:
        while left and (block := file.read(min(left, BLOCK))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest() if left else f"more than {size} bytes"


def _download(archive: Archive, path: pathlib.Path, manual: pathlib.Path) -> None:
    """Download and verify an archive. A file at `path` is always complete."""
    import requests  # here, so that only downloads pay for these slow imports
    from tqdm import tqdm

    size = f"{archive.size} bytes{' uncompressed' if archive.gzipped else ''}"
    logger.info("downloading %s (%s)", archive.url, size)
    package = archive.package
    install = f"or install the files (apt install {package.name}), " if package else ""
    remedy = (
        f"run again, {install}or place {archive.filename} ({_identity(archive)}) in {manual} by "
        "hand"
    )
    try:
        with replacing(path) as part:
            timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
            total = None if archive.gzipped else archive.size
            bar = tqdm(total=total, unit="B", unit_scale=True, disable=None)
            with bar, requests.get(archive.url, stream=True, timeout=timeout) as response:
                response.raise_for_status()
                with part.open("wb") as file:
                    for block in response.iter_content(BLOCK):
                        file.write(block)
                        bar.update(len(block))
            if fault := _fault(archive, part):
                raise UserError(f"what {archive.url} sent is wrong: {fault}; {remedy}")
    except requests.RequestException as error:
        raise UserError(f"cannot download {archive.url} ({_reason(error)}); {remedy}") from error


def _reason(error: Exception) -> str:
    """Return the innermost cause as a short phrase; the message of requests is very long."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    cause: BaseException = error
    while deeper := cause.__cause__ or cause.__context__:
        cause = deeper
    return str(cause) or type(cause).__name__
