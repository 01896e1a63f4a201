"""Recordings with transcripts, as batches for the recogniser; imports no JAX."""

import dataclasses
import itertools
import os
import pathlib

import numpy as np

from data_pipeline.feature_cache import replacing
from svc_jax import audio_files
from svc_jax.errors import UserError

SAMPLE_RATE = 16_000
_SAMPLES_PER_LABEL_FRAME = 320


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One recording and what is said in it.

    Attributes:
      path: relative to the table's folder.
      speaker: as the table names them.
      audio: int16 [N] at 16 kHz.
      labels: int32 [L].
    """

    path: str
    speaker: str
    audio: np.ndarray
    labels: np.ndarray


def read(path) -> tuple[pathlib.Path, list[dict[str, str]]]:
    """The transcripts of a table, or of a folder in LibriSpeech's layout.

    Args:
      path: of a table, see `read_table`; or of a folder, see `read_librispeech`.

    Returns:
      (folder that recordings are named relative to, rows).

    Raises:
      UserError: if there are none.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return path, read_librispeech(path)
    return path.parent, read_table(path)


def read_table(path: pathlib.Path) -> list[dict[str, str]]:
    """Rows of a tab-separated table with the columns path, split, speaker, text[, phones].

    Raises:
      UserError: if it is missing, lacks a column, or a line lacks a cell.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such table of transcripts; check --config.data.transcripts."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8.") from error
    header = lines[0].split("\t") if lines else []
    missing = {"path", "split", "speaker", "text"} - set(header)
    if missing:
        raise UserError(
            f"{path}: lacks the columns {', '.join(sorted(missing))}; its first line"
            " must name path, split, speaker, text (and phones)."
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise UserError(
                f"{path}: line {number} has {len(cells)} cells, the first line"
                f" {len(header)}; separate them by one tab each."
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def read_librispeech(folder: pathlib.Path) -> list[dict[str, str]]:
    """Rows of a folder with <subset>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt.

    LibriSpeech's layout (www.openslr.org/12, its README): each line of such a file is a
    recording's name, without .flac, and its text. The subsets whose names begin with
    train are the split train, every other is a split of its name.

    Raises:
      UserError: if there is none.
    """
    rows = []
    for path in sorted(folder.glob("*/*/*/*.trans.txt")):
        subset, speaker = path.relative_to(folder).parts[:2]
        split = "train" if subset.startswith("train") else subset
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, text = line.strip().partition(" ")
            recording = path.with_name(f"{name}.flac").relative_to(folder).as_posix()
            rows.append(
                {"path": recording, "split": split, "speaker": speaker, "text": text}
            )
    if not rows:
        raise UserError(
            f"{folder}: holds no <subset>/<speaker>/<chapter>/*.trans.txt, as"
            " LibriSpeech does; give such a folder, or a table of transcripts."
        )
    return rows


def tokens(row: dict[str, str], unit: str) -> list[str]:
    """The labels of a row: its `phones`, or the `letters` of its text.

    Raises:
      UserError: if there are no phones, or for another unit.
    """
    if unit not in ("phones", "letters"):
        raise UserError(f"config.data.unit is {unit!r}; choose phones or letters.")
    if unit == "phones" and "phones" not in row:
        raise UserError(
            "the table of transcripts has no column phones; add it, or choose"
            " --config.data.unit=letters."
        )
    return row["phones"].split() if unit == "phones" else list(row["text"].lower())


def alphabet(rows, unit: str, chosen: str = "") -> tuple[str, ...]:
    """All labels of the split train, sorted; the blank is not among them.

    Args:
      rows: from `read`.
      unit: phones or letters.
      chosen: the labels themselves, if not those in use: letters as one word, phones
        with spaces between.
    """
    if chosen:
        return tuple(chosen.split() if unit == "phones" else chosen)
    used = (tokens(row, unit) for row in rows if row["split"] == "train")
    return tuple(sorted(set(itertools.chain.from_iterable(used))))


def write_left_out(path: pathlib.Path, left_out):
    """Writes a table of (path, why it was left out) under a temporary name first."""
    lines = ["path\treason", *("\t".join(entry) for entry in left_out)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n")


def load(folder, rows, unit: str, labels: tuple[str, ...]):
    """Decodes recordings.

    Args:
      folder: that the rows' paths are relative to.
      rows: from `read`.
      unit: phones or letters.
      labels: the alphabet.

    Returns:
      (dict of split -> list of Utterance; list of (path, why it was left out)).
    """
    index = {label: number for number, label in enumerate(labels)}
    folder = pathlib.Path(folder)
    splits, left_out = {}, []
    for row in rows:
        try:
            utterance = _utterance(folder, row, tokens(row, unit), index)
        except UserError as error:
            left_out.append((row["path"], str(error)))
            continue
        splits.setdefault(row["split"], []).append(utterance)
    told = {os.path.normpath(folder / row["path"]) for row in rows}
    for path in audio_files.find(folder):
        if os.path.normpath(path) not in told:
            left_out.append((os.path.relpath(path, folder), "no transcript"))
    return splits, left_out


def _utterance(folder, row, wanted, index) -> Utterance:
    """A row's; UserError says why there is none."""
    if not wanted:
        raise UserError("empty transcript")
    if strange := sorted(set(wanted) - index.keys()):
        raise UserError(f"labels outside the alphabet: {' '.join(strange)}")
    if not (folder / row["path"]).is_file():
        raise UserError("no such recording")
    try:
        audio = audio_files.read(folder / row["path"], SAMPLE_RATE).audio
    except UserError as error:
        raise UserError(f"unusable recording: {error}") from error
    if _frames_needed(wanted) > audio.size // _SAMPLES_PER_LABEL_FRAME:
        raise UserError("more labels than frames")
    pcm = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
    numbers = np.asarray([index[token] for token in wanted], np.int32)
    return Utterance(row["path"], row["speaker"], pcm, numbers)


def _frames_needed(labels) -> int:
    """CTC's: one for every label, and one between two that are equal."""
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


def pad_batch(utterances, num_samples: int, num_labels: int) -> dict[str, np.ndarray]:
    """Stacks utterances: audio [B, N] float32, num_samples [B], labels [B, L], num_labels."""
    audio = np.zeros((len(utterances), num_samples), np.float32)
    labels = np.zeros((len(utterances), num_labels), np.int32)
    for row, utterance in enumerate(utterances):
        audio[row, : utterance.audio.size] = utterance.audio / np.float32(32767)
        labels[row, : utterance.labels.size] = utterance.labels
    return {
        "audio": audio,
        "num_samples": np.asarray([u.audio.size for u in utterances], np.int32),
        "labels": labels,
        "num_labels": np.asarray([u.labels.size for u in utterances], np.int32),
    }


def buckets(utterances, batch_seconds: float, max_buckets: int, multiple: int = 1):
    """Groups utterances of like length, each with one shape of batch.

    Args:
      utterances: list of Utterance.
      batch_seconds: audio in a batch, padding included.
      max_buckets: how many shapes there may be.
      multiple: that the batch size is to be of.

    Returns:
      list of (utterances, batch size, samples, labels).
    """
    ordered = sorted(utterances, key=lambda u: u.audio.size)
    count = min(max_buckets, len(ordered))
    groups = [g for g in np.array_split(np.arange(len(ordered)), count) if g.size]
    result = []
    for group in groups:
        members = [ordered[i] for i in group]
        second = SAMPLE_RATE
        samples = -(-members[-1].audio.size // second) * second
        size = min(len(members), max(1, int(batch_seconds * second // samples)))
        size = max(1, size // multiple) * multiple
        result.append((members, size, samples, max(u.labels.size for u in members)))
    return result


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """How far a recording may be from how it was said, each as a factor of at least 1.

    Attributes:
      pitch: of f0.
      formants: of the resonances of the vocal tract.
      speed: of speech.
    """

    pitch: float = 1.0
    formants: float = 1.0
    speed: float = 1.0


def perturb(utterance: Utterance, perturbation: Perturbation, most_samples: int, rng):
    """Another pitch, other formants and another speed, log-uniform in their limits.

    Resampling moves all three by the pitch's factor; the recogniser's front end warps
    the formants and stretches time by what is left (svc_jax.perturbation).

    Args:
      utterance: what was said.
      perturbation: limits of the factors.
      most_samples: what may be filled; a longer result is made as much faster.
      rng: a numpy generator.

    Returns:
      (Utterance of the resampled audio, warp, speed: what the front end is to do).
    """
    import soxr

    factors = dataclasses.astuple(perturbation)
    pitch, formants, speed = np.exp(rng.uniform(-1, 1, 3) * np.log(factors))
    # CTC needs a frame for every label, and a blank between two that are equal.
    slowest = utterance.audio.size / most_samples
    fastest = utterance.audio.size / (
        _SAMPLES_PER_LABEL_FRAME * (_frames_needed(utterance.labels) + 1)
    )
    speed = np.clip(speed, slowest, max(slowest, fastest))
    pitch = max(pitch, slowest)
    if pitch == 1.0:
        return utterance, formants, speed
    audio = soxr.resample(
        utterance.audio, pitch * SAMPLE_RATE, SAMPLE_RATE, quality="LQ"
    )[:most_samples]
    return dataclasses.replace(utterance, audio=audio), formants / pitch, speed / pitch


def train_batches(
    utterances,
    *,
    batch_seconds: float,
    max_buckets: int,
    perturbation: Perturbation,
    seed: int,
    first_step: int,
    num_devices: int = 1,
    shard_index: int = 0,
    shard_count: int = 1,
):
    """Endless batches, a function of (seed, step); of each, this host's part.

    Every step draws a bucket by its share of batches and its members at random.

    Args:
      utterances: list of Utterance, the same on all hosts.
      batch_seconds, max_buckets: see `buckets`.
      perturbation: how far recordings are perturbed.
      seed: of all that is drawn.
      first_step: that the first batch is for.
      num_devices: that a batch is divided over, of all hosts.
      shard_index, shard_count: which host this is, of how many.

    Yields:
      dict as `pad_batch` gives it, with `warp` and `speed`, see `perturb`.
    """
    groups = buckets(utterances, batch_seconds, max_buckets, num_devices)
    share = np.asarray([len(members) / size for members, size, _, _ in groups])
    step = first_step
    while True:
        rng = np.random.default_rng((seed, step))
        members, size, samples, labels = groups[
            rng.choice(len(groups), p=share / share.sum())
        ]
        chosen = rng.choice(len(members), size, replace=size > len(members))
        own = slice(
            size * shard_index // shard_count, size * (shard_index + 1) // shard_count
        )
        # Every host draws the same numbers, whatever its part of them.
        rngs = rng.spawn(size)[own]
        perturbed = [
            perturb(members[i], perturbation, samples, one)
            for i, one in zip(chosen[own], rngs, strict=True)
        ]
        batch = pad_batch([utterance for utterance, _, _ in perturbed], samples, labels)
        warp, speed = np.asarray([factors for _, *factors in perturbed], np.float32).T
        yield {**batch, "warp": warp, "speed": speed}
        step += 1


def eval_batches(utterances, *, batch_seconds: float, max_buckets: int):
    """Every utterance once: (batch, the utterances in its first rows)."""
    for members, size, samples, labels in buckets(
        utterances, batch_seconds, max_buckets
    ):
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            filled = chunk + chunk[:1] * (size - len(chunk))
            yield pad_batch(filled, samples, labels), chunk
