"""Files that others publish: placed by hand or downloaded, and their checksums verified.

TFDS's own downloads are not used: without a network they retry for minutes, and a stalled
connection holds them for ever. Here both end in seconds, with one line that says what to do.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import uuid

import requests
from tqdm import tqdm

from ddpm_jax.errors import UserError

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 30  # seconds
BLOCK = 1 << 20  # bytes


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
    """Download to a temporary name, verify, and rename: what is at `path` is always whole."""
    logging.getLogger(__name__).info("downloading %s (%d bytes)", archive.url, archive.size)
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = (
        f"run again, or place {archive.filename} (sha256 {archive.sha256}) in {manual} by hand"
    )
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
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
        os.replace(part, path)
    except requests.RequestException as error:
        raise UserError(f"cannot download {archive.url} ({_reason(error)}); {by_hand}") from error
    finally:
        part.unlink(missing_ok=True)


def _reason(error: requests.RequestException) -> str:
    """Return the innermost cause in a few words; requests wraps it in pages of its own."""
    if error.response is not None:
        return f"HTTP status {error.response.status_code}"
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    return str(cause) or type(cause).__name__
