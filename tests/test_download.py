"""Archives against a real server on this machine: placed by hand, downloaded, wrong, cut short."""

import dataclasses
import gzip
import hashlib
import http.server
import threading

import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files as download
from ddpm_jax.runtime.files import Archive, Package, fetch

CONTENT = b"what upstream publishes " * 1000


def archive_of(url: str, **kwargs) -> Archive:
    return Archive(url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), **kwargs)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the content, another one, half of it, or nothing, by the name of the path."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        body = {"/other": b"a page of a hotel's wireless network"}.get(self.path[:6], CONTENT)
        body = gzip.compress(body) if self.path.endswith(".gz.gz") else body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path.startswith("/stalls"):
            self.server.released.wait(10)
        self.wfile.write(body[: len(body) // 2] if self.path.startswith("/half") else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.released = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def refusal(archive: Archive, tmp_path, **kwargs) -> str:
    """Return the one line with which the archive is refused; nothing stays behind."""
    with pytest.raises(UserError) as caught:
        fetch(archive, "set", str(tmp_path / "downloads"), **kwargs)
    assert "\n" not in str(caught.value)
    left = [path for path in (tmp_path / "downloads").rglob("*") if path.is_file()]
    assert left == []
    return str(caught.value)


def test_a_download_is_verified_and_kept(server, tmp_path):
    archive = archive_of(f"{server.url}/a.tar.gz")
    for _ in range(2):
        path = fetch(archive, "set", str(tmp_path))
        assert path.read_bytes() == CONTENT
        assert [p.name for p in path.parent.iterdir()] == ["a.tar.gz"]
    assert server.requests == ["/a.tar.gz"]


def test_the_content_of_a_gzipped_download_is_verified(server, tmp_path):
    archive = archive_of(f"{server.url}/a.gz.gz", gzipped=True)
    path = fetch(archive, "set", str(tmp_path))
    assert gzip.decompress(path.read_bytes()) == CONTENT
    path.write_bytes(gzip.compress(CONTENT, compresslevel=0))  # another file of the same content
    assert fetch(archive, "set", str(tmp_path)) == path and len(server.requests) == 1
    path.write_bytes(path.read_bytes()[:-9])
    assert gzip.decompress(fetch(archive, "set", str(tmp_path)).read_bytes()) == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("file", ["other/a.gz.gz", "half/a.gz.gz", "a.gz"])
def test_a_gzipped_download_of_another_content_is_refused(server, tmp_path, file):
    package = Package("the-package", str(tmp_path / "absent"))
    archive = archive_of(f"{server.url}/{file}", gzipped=True, package=package)
    message = refusal(archive, tmp_path)
    assert archive.url in message and f"uncompressed sha256 {archive.sha256}" in message
    assert "apt install the-package" in message


def test_a_kept_download_that_is_damaged_is_fetched_again(server, tmp_path):
    archive = archive_of(f"{server.url}/a.tar.gz")
    path = fetch(archive, "set", str(tmp_path))
    path.write_bytes(CONTENT[:-1])
    assert fetch(archive, "set", str(tmp_path)).read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("place", ["downloads/manual", "downloads/manual/set", "mine", "mine/set"])
def test_a_file_placed_by_hand_is_taken(server, tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "a.tar.gz").write_bytes(CONTENT)
    manual_dir = str(tmp_path / "mine") if place.startswith("mine") else ""
    archive = archive_of(f"{server.url}/a.tar.gz")
    path = fetch(archive, "set", str(tmp_path / "downloads"), manual_dir)
    assert path == tmp_path / place / "a.tar.gz"
    assert server.requests == []


def test_a_wrong_file_placed_by_hand_is_named_with_both_checksums(server, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.tar.gz").write_bytes(b"cut sho")
    archive = archive_of(f"{server.url}/a.tar.gz")
    message = refusal(archive, tmp_path, manual_dir=str(tmp_path / "mine"))
    assert str(tmp_path / "mine" / "a.tar.gz") in message
    assert f"expected sha256 {archive.sha256}" in message
    assert f"found {hashlib.sha256(b'cut sho').hexdigest()}" in message
    assert server.requests == []


@pytest.mark.parametrize("manual_dir", ["/no/such/directory", "~no_such_user/manual"])
def test_a_manual_directory_that_is_absent_is_refused(tmp_path, manual_dir):
    message = refusal(archive_of("http://x.invalid/a"), tmp_path, manual_dir=manual_dir)
    assert "data.manual_dir" in message and manual_dir in message


@pytest.mark.parametrize(
    "url", ["https://no-such-host.invalid/a.tar.gz", "http://127.0.0.1:1/a.tar.gz"]
)
def test_without_a_network_it_fails_and_says_what_to_do(tmp_path, url):
    archive = archive_of(url)
    message = refusal(archive, tmp_path)
    for word in (url, "place a.tar.gz", archive.sha256, str(tmp_path / "downloads/manual/set")):
        assert word in message


def test_a_page_that_is_not_there_is_named(server, tmp_path):
    assert "HTTP status 404" in refusal(archive_of(f"{server.url}/absent/a.tar.gz"), tmp_path)


def test_other_content_is_refused_with_both_checksums(server, tmp_path):
    archive = archive_of(f"{server.url}/other/a.tar.gz")
    message = refusal(archive, tmp_path)
    found = hashlib.sha256(b"a page of a hotel's wireless network").hexdigest()
    assert archive.sha256 in message and found in message


def test_half_a_download_is_refused(server, tmp_path):
    message = refusal(archive_of(f"{server.url}/half/a.tar.gz"), tmp_path)
    assert "cannot download" in message or "sha256" in message


def test_a_stalled_download_ends(server, tmp_path, monkeypatch):
    """The server stalls for ten seconds and then sends everything: to wait would be no error."""
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.3)
    message = refusal(archive_of(f"{server.url}/stalls/a.tar.gz"), tmp_path)
    assert "timed out" in message


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(download.os, "replace", interrupt)
    archive = archive_of(f"{server.url}/a.tar.gz")
    with pytest.raises(KeyboardInterrupt):
        fetch(archive, "set", str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    assert fetch(archive, "set", str(tmp_path)).read_bytes() == CONTENT


def test_the_file_name_is_the_last_part_of_the_url():
    archive = archive_of("https://a.org/b/c.tar.gz")
    assert archive.filename == "c.tar.gz"
    assert dataclasses.replace(archive, url="https://a.org/d.gz").filename == "d.gz"
