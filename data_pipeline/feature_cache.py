"""Features of recordings on disk, each under a hash of all that made them.

An entry is a folder of .npy files and, written last, a JSON that says what they are of:
without it there is no entry. Every file is written under a temporary name and renamed,
so that a process that is killed leaves nothing that could be taken for a result.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

SUMMARY = "summary.json"


def digest(*facts) -> str:
    """A name for facts, JSON values: hexadecimal, the same on every machine."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    found = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


@contextlib.contextmanager
def replacing(path) -> Iterator[epath.Path]:
    """Yields a temporary path that becomes `path` if all goes well."""
    path = epath.Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


class Entry:
    """What is kept of one recording."""

    def __init__(self, folder):
        self._folder = epath.Path(folder)

    def summary(self) -> dict | None:
        """What `finish` was given; None if that never came."""
        path = self._folder / SUMMARY
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, summary: dict):
        """Makes the entry valid; all its arrays must be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / SUMMARY) as partial:
            partial.write_text(json.dumps(summary))

    def write(self, name: str, shape, dtype, parts: Iterable[np.ndarray]):
        """Writes an array that is given in parts along its first axis."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / f"{name}.npy") as partial:
            with partial.open("wb") as file:
                header = {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                    "fortran_order": False,
                    "shape": tuple(shape),
                }
                np.lib.format.write_array_header_1_0(file, header)
                written = 0
                for part in parts:
                    file.write(np.ascontiguousarray(part, dtype).tobytes())
                    written += len(part)
            if written != shape[0]:
                raise ValueError(f"{name} has {written} rows instead of {shape[0]}.")

    def read(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Rows [first, last) of an array."""
        with (self._folder / f"{name}.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            last = shape[0] if last is None else last
            row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            file.seek(file.tell() + first * row)
            data = file.read((last - first) * row)
        return np.frombuffer(data, dtype).reshape(last - first, *shape[1:])


class FeatureCache:
    """Entries by their keys."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = epath.Path(folder)

    def entry(self, key: str) -> Entry:
        """The entry of a key, there or not."""
        return Entry(self.folder / key[:2] / key)
