"""Recordings with transcripts, as batches for the recogniser; imports no JAX."""

import collections
import dataclasses
import itertools
import pathlib

import numpy as np

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


def read_table(path) -> list[dict[str, str]]:
    """Rows of a tab-separated table with the columns path, split, speaker, text[, phones].

    Raises:
      UserError: if it is missing, lacks a column, or a line lacks a cell.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such table of transcripts; check --config.data.tsv."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
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


def alphabet(rows, unit: str) -> tuple[str, ...]:
    """All labels in use, sorted; the blank is not among them."""
    return tuple(sorted({token for row in rows for token in tokens(row, unit)}))


def load(path, rows, unit: str, labels: tuple[str, ...]):
    """Decodes the recordings of a table.

    Args:
      path: of the table; recordings are named relative to its folder.
      rows: from `read_table`.
      unit: phones or letters.
      labels: the alphabet.

    Returns:
      (dict of split -> list of Utterance, Counter of reasons why a row was left out).
    """
    index = {label: number for number, label in enumerate(labels)}
    folder = pathlib.Path(path).parent
    splits, dropped = {}, collections.Counter()
    for row in rows:
        wanted = tokens(row, unit)
        if not wanted:
            dropped["empty transcript"] += 1
            continue
        if not index.keys() >= set(wanted):
            dropped["label outside the alphabet"] += 1
            continue
        try:
            audio = audio_files.read(folder / row["path"], SAMPLE_RATE).audio
        except UserError as error:
            dropped[str(error)] += 1
            continue
        repeats = sum(a == b for a, b in itertools.pairwise(wanted))
        if len(wanted) + repeats > audio.size // _SAMPLES_PER_LABEL_FRAME:
            dropped["more labels than frames"] += 1
            continue
        pcm = np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)
        numbers = np.asarray([index[token] for token in wanted], np.int32)
        utterance = Utterance(row["path"], row["speaker"], pcm, numbers)
        splits.setdefault(row["split"], []).append(utterance)
    return splits, dropped


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


def buckets(utterances, batch_seconds: float, max_buckets: int):
    """Groups utterances of like length, each with one shape of batch.

    Args:
      utterances: list of Utterance.
      batch_seconds: audio in a batch, padding included.
      max_buckets: how many shapes there may be.

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
        result.append((members, size, samples, max(u.labels.size for u in members)))
    return result


def train_batches(
    utterances, *, batch_seconds: float, max_buckets: int, seed: int, first_step: int
):
    """Endless batches, a function of (seed, step).

    Every step draws a bucket by its share of batches and its members at random.
    """
    groups = buckets(utterances, batch_seconds, max_buckets)
    share = np.asarray([len(members) / size for members, size, _, _ in groups])
    step = first_step
    while True:
        rng = np.random.default_rng((seed, step))
        members, size, samples, labels = groups[
            rng.choice(len(groups), p=share / share.sum())
        ]
        chosen = rng.choice(len(members), size, replace=False)
        yield pad_batch([members[i] for i in chosen], samples, labels)
        step += 1


def eval_batches(utterances, *, batch_seconds: float, max_buckets: int):
    """Every utterance once: (batch, how many of its rows are real)."""
    for members, size, samples, labels in buckets(
        utterances, batch_seconds, max_buckets
    ):
        for start in range(0, len(members), size):
            chunk = members[start : start + size]
            filled = chunk + chunk[:1] * (size - len(chunk))
            yield pad_batch(filled, samples, labels), len(chunk)
