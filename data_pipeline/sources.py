"""Where recordings are, whose they are, and which split each belongs to."""

import csv
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence

from etils import epath

from svc_jax import audio_files
from svc_jax.errors import UserError

# Formats that the audio library may not read are found too, so that they are refused
# aloud instead of overlooked.
EXTENSIONS = (
    *audio_files.EXTENSIONS,
    *(".m4a", ".aac", ".wma", ".au", ".w64", ".rf64", ".mp2", ".oga", ".webm"),
)
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Source:
    """A recording to prepare.

    Attributes:
      path: of the file; may be gs://.
      singer: whose voice it is.
      name: of the recording in the dataset: singer/relative path, "/" between.
      song: recordings of one song share a split; by default the recording's name.
      split: train or validation; None where it is still to be chosen.
    """

    path: str
    singer: str
    name: str
    song: str = ""
    split: str | None = None


def find(inputs: Sequence[str | os.PathLike]) -> list[Source]:
    """Recordings of all inputs: folders with a folder per singer, or tables.

    Raises:
      UserError: if an input is neither, or holds no singer or no recording.
    """
    found = []
    for each in inputs:
        path = os.fspath(each)
        is_table = path.lower().endswith((".tsv", ".txt"))
        found += from_table(path) if is_table else from_folder(path)
    return _with_names_of_their_own(found)


def from_folder(folder: str) -> list[Source]:
    """Recordings in FOLDER/<singer>/**; links are followed, hidden files are not.

    Raises:
      UserError: if there is no such folder, or it holds no folders, or no audio.
    """
    paths = walk(folder)
    if paths is None:
        raise UserError(
            f"{folder}: no such folder of recordings, nor a table; check --input."
        )
    prefix = folder.rstrip("/") + "/"
    found = []
    for path in paths:
        name = printable(path.removeprefix(prefix))
        singer, slash, _ = name.partition("/")
        if slash:
            found.append(Source(path, singer, name))
    if not found:
        endings = " ".join(audio_files.EXTENSIONS)
        raise UserError(
            f"{folder}: no folder in it holds audio ({endings}); put each singer's"
            " recordings in a folder named after the singer, as"
            f" {prefix}alto/song.wav."
        )
    return found


def printable(path: str) -> str:
    """A path as text: bytes that are no UTF-8 are spelled out."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def walk(folder: str) -> list[str] | None:
    """Paths of the audio files below a folder, sorted; None if there is no folder."""
    if "://" in folder:
        root = epath.Path(folder)
        if not root.is_dir():
            return None
        paths = [
            os.fspath(parent / name)
            for parent, _, files in root.walk()
            for name in files
        ]
    else:
        if not os.path.isdir(folder):
            return None
        paths, seen = [], set()
        for parent, folders, files in os.walk(folder, followlinks=True):
            # A link to a folder above would be walked for ever.
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            paths += [os.path.join(parent, name) for name in files]
    start = len(folder.rstrip("/")) + 1

    def is_audio(path: str) -> bool:
        hidden = any(part.startswith(".") for part in path[start:].split("/"))
        return not hidden and path.lower().endswith(EXTENSIONS)

    return sorted(
        path for path in (p.replace(os.sep, "/") for p in paths) if is_audio(path)
    )


def from_table(table: str) -> list[Source]:
    """Recordings of a table with the columns path, singer[, split][, song].

    Tabs between the columns, whose names are the first line; paths are relative to the
    table's folder.

    Raises:
      UserError: if it cannot be read, or a line lacks something.
    """
    try:
        text = epath.Path(table).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{table}: no such table; check --input.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{table}: is not UTF-8 text; save it as UTF-8.") from error
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = {"path", "singer"} - set(rows.fieldnames or ())
    if missing:
        raise UserError(
            f"{table}: its first line lacks the columns {' and '.join(sorted(missing))};"
            " name the columns path, singer and, if you like, split and song."
        )
    folder = os.path.dirname(table)
    found = []
    for number, row in enumerate(rows, 2):
        path, singer = (row["path"] or "").strip(), (row["singer"] or "").strip()
        split = (row.get("split") or "").strip() or None
        if not path or not singer or "/" in singer:
            raise UserError(
                f"{table}:{number}: path {path!r}, singer {singer!r}; give both, the"
                " singer without a slash."
            )
        if split not in (None, *SPLITS):
            raise UserError(
                f"{table}:{number}: split {split!r}; write {' or '.join(SPLITS)}."
            )
        where = path if "://" in path else os.path.join(folder, path)
        song = (row.get("song") or "").strip()
        song = song and f"{singer}/{song}"
        found.append(Source(where, singer, f"{singer}/{path.lstrip('/')}", song, split))
    if not found:
        raise UserError(f"{table}: names no recording; add a line for each.")
    return found


def _with_names_of_their_own(found: list[Source]) -> list[Source]:
    """Recordings of several inputs that have one name get a number each."""
    counts, named = {}, []
    for source in found:
        count = counts[source.name] = counts.get(source.name, 0) + 1
        if count > 1:
            stem, dot, ending = source.name.rpartition(".")
            name = f"{stem} ({count}){dot}{ending}"
            source = dataclasses.replace(source, name=name)
        named.append(source)
    return named


def assign_splits(found: Iterable[Source], valid: float) -> list[Source]:
    """Gives each recording without a split one, by its song.

    Args:
      found: recordings.
      valid: share of a singer's songs for validation; unless it is 0, at least one, but
        never all. Chosen by a hash of the song's name: adding songs moves few.

    Returns:
      The recordings, sorted by name.
    """
    songs: dict[str, set[str]] = {}
    for source in found:
        if source.split is None:
            songs.setdefault(source.singer, set()).add(source.song or source.name)
    held_out = set()
    for own in songs.values():
        num_valid = max(round(valid * len(own)), 1) if valid else 0
        held_out.update(sorted(own, key=_rank)[: min(num_valid, len(own) - 1)])

    def with_split(source: Source) -> Source:
        if source.split is not None:
            return source
        is_held_out = (source.song or source.name) in held_out
        return dataclasses.replace(source, split=SPLITS[is_held_out])

    return sorted(map(with_split, found), key=lambda source: source.name)


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
