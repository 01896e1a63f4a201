"""Recipes: the folder of a downloaded public corpus -> its recordings.

A recipe is a pattern of paths that names the singer and the song, by a layout that is
documented; what does not match is left alone. Each corpus has a licence of its own.
"""

import dataclasses
import os
import pathlib
import re

from data_pipeline import sources
from data_pipeline.sources import Source
from svc_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where a corpus keeps whose recordings.

    Attributes:
      pattern: of paths, below the folder or some way down; its groups are joined by
        "_": those named singer... to the singer, those named song... to the song, the
        recordings of which share a split. Without a song, each is one of its own.
      documented: where the layout is.
    """

    pattern: str
    documented: str


_AMPHION = "https://github.com/open-mmlab/Amphion, egs/datasets/README.md"

CORPORA = {
    # Four letters a singer; what is sung is read as well.
    "nus48e": Corpus(
        r"(?P<singer>[A-Z]{4})/(?:sing|read)/(?P<song>\d+)\.wav", _AMPHION
    ),
    # Audio only (03), speech or song (01, 02); the last number is the actor.
    "ravdess": Corpus(
        r"03-0[12](?:-\d\d){4}-(?P<singer>\d\d)\.wav",
        "https://zenodo.org/records/1188976",
    ),
    # Version 0.92; of its two microphones, the one that recorded everyone.
    "vctk": Corpus(
        r"wav48_silence_trimmed/(?P<singer>\w+)/(?P=singer)_(?P<song>\d+)_mic1\.flac",
        "https://datashare.ed.ac.uk/handle/10283/3443; " + _AMPHION,
    ),
    # The first number is that of the chapter read.
    "ljspeech": Corpus(
        r"wavs/(?P<singer>LJ)(?P<song>\d+)-\d+\.wav",
        "https://keithito.com/LJ-Speech-Dataset; " + _AMPHION,
    ),
    "opensinger": Corpus(
        r"(?P<singer1>Man|Woman)Raw/(?P<singer2>\d+)_(?P<song>[^/]+)/[^/]+\.wav",
        _AMPHION,
    ),
    # Versions 1.1 and 1.2; the same files sorted otherwise are passed over.
    "vocalset": Corpus(
        r"(?:FULL|data_by_singer)/(?P<singer>(?:fe)?male\d+)/.+\.wav",
        "https://zenodo.org/records/1193957",
    ),
    "libritts": Corpus(
        r"(?:train|dev|test)-\w+(?:-\d+)?/(?P<singer>\d+)/(?P<song>\d+)/[^/]+\.wav",
        "https://www.openslr.org/60; " + _AMPHION,
    ),
    "m4singer": Corpus(
        r"(?P<singer>[^/#]+)#(?P<song>[^/]+)/\d+\.wav",
        "https://github.com/M4Singer/M4Singer; " + _AMPHION,
    ),
}


def find(name: str, folder: str | os.PathLike) -> list[Source]:
    """The recordings of a public corpus in the folder it was downloaded to.

    Raises:
      UserError: for a corpus that is unknown, or whose recordings are not there.
    """
    corpus = CORPORA.get(name)
    if corpus is None:
        known = ", ".join(CORPORA)
        raise UserError(f"--corpus {name}: unknown; choose one of {known}.")
    folder = os.fspath(folder).rstrip("/")
    pattern = re.compile("(?:.*/)?" + corpus.pattern)
    found = []
    for path in sources.walk(folder) or ():
        relative = sources.printable(path[len(folder) + 1 :])
        if match := pattern.fullmatch(relative):
            singer, song = (
                "_".join(v for k, v in match.groupdict().items() if k.startswith(part))
                for part in ("singer", "song")
            )
            song = song and f"{singer}/{song}"
            found.append(Source(path, singer, f"{singer}/{relative}", song))
    if not found:
        raise UserError(
            f"{folder}: holds no recordings of {name} as {corpus.documented} has them;"
            " check --input, or use folders or a table without --corpus."
        )
    return found


# Corpora that tensorflow-datasets builds: name -> audio, sample rate, and what the
# singer and the song of an example are.
TFDS = {
    "vctk": ("speech", 48_000, lambda e: e["speaker"], lambda e: e["id"]),
    "ljspeech": ("speech", 22_050, lambda e: "LJ", lambda e: e["id"].split("-")[0]),
    "libritts": (
        "speech",
        24_000,
        lambda e: e["speaker_id"],
        lambda e: e["chapter_id"],
    ),
    # Notes of many instruments; the voices alone are taken.
    "nsynth": ("audio", 16_000, lambda e: e["instrument/label"], lambda e: e["id"]),
}


def from_tfds(name: str, data_dir: str | None, folder: str) -> list[Source]:
    """Recordings of a dataset that tensorflow-datasets has prepared, as files.

    Args:
      name: of the dataset, perhaps with a config: vctk/mic1.
      data_dir: where tensorflow-datasets keeps datasets; None for its own place.
      folder: gets the recordings; those that are there are kept.

    Raises:
      UserError: for a dataset that is not among TFDS, or was not prepared.
    """
    import soundfile
    import tensorflow_datasets as tfds

    base = name.partition("/")[0].partition(":")[0]
    if base not in TFDS:
        raise UserError(f"--tfds {name}: choose one of {', '.join(TFDS)}.")
    field, sample_rate, singer_of, song_of = TFDS[base]
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.data_path.exists():
        raise UserError(
            f"--tfds {name}: nothing in {builder.data_path}; prepare it with"
            f" tfds build {base}, or name its place with --tfds_dir."
        )
    found = []
    for split in sorted(builder.info.splits):
        for number, example in enumerate(tfds.as_numpy(builder.as_dataset(split))):
            facts = _facts(example, builder.info.features)
            if base == "nsynth" and facts["instrument/family"] != "vocal":
                continue
            singer = f"{singer_of(facts)}"
            path = pathlib.Path(folder, base, singer, f"{split}-{number:06d}.flac")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".partial")
                audio = example[field]
                if audio.dtype.kind == "i":
                    audio = audio.astype("int16")  # tfds widens what files hold
                soundfile.write(partial, audio, sample_rate, format="FLAC")
                partial.replace(path)
            name_ = f"{singer}/{path.name}"
            found.append(Source(str(path), singer, name_, f"{singer}/{song_of(facts)}"))
    return found


def _facts(example: dict, features) -> dict[str, str]:
    """What an example says in words, labels spelled out; "a/b" for nested names."""
    facts = {}
    for name, value in example.items():
        if isinstance(value, dict):
            nested = _facts(value, features[name])
            facts.update({f"{name}/{key}": fact for key, fact in nested.items()})
        elif isinstance(value, bytes):
            facts[name] = value.decode()
        elif getattr(value, "ndim", 0) == 0:
            label = hasattr(features[name], "int2str")
            facts[name] = features[name].int2str(value) if label else str(value)
    return facts
