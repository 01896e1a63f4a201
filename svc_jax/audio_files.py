"""Recordings in, recordings out."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from svc_jax.errors import UserError

MAX_WAV_SAMPLES = (
    1 << 32
) // 8 - 4096  # of any sample format; its lengths have 32 bits
EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".caf")


@dataclasses.dataclass(frozen=True)
class Recording:
    """Audio as the system wants it, and what was done to get it.

    Attributes:
      audio: float32 [N], mono.
      sample_rate: of `audio`, in Hz.
      source_rate: of the file, in Hz.
      source_samples: per channel in the file.
      subtype: sample format of the file, as soundfile names it.
      changes: in words, what was changed on the way ("downmixed from 2 channels").
    """

    audio: np.ndarray
    sample_rate: int
    source_rate: int
    source_samples: int
    subtype: str
    changes: tuple[str, ...]


def find(folder) -> list[pathlib.Path]:
    """Audio files below a folder, sorted, by their extensions; hidden files are not."""
    folder = pathlib.Path(folder)

    def is_hidden(path):
        return any(part.startswith(".") for part in path.relative_to(folder).parts)

    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS and path.is_file() and not is_hidden(path)
    )


def read(path, sample_rate: int) -> Recording:
    """Reads a file as mono at a sample rate.

    Args:
      path: any format libsndfile reads.
      sample_rate: wanted, in Hz.

    Raises:
      UserError: if it is missing, not audio, empty, silent, or holds NaN.
    """
    import soundfile

    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path.")
    try:
        with soundfile.SoundFile(path) as file:
            source_rate, subtype = file.samplerate, file.subtype
            audio = file.read(dtype="float32", always_2d=True)
    # TypeError: raw samples, whose rate is not known.
    except (soundfile.LibsndfileError, TypeError) as error:
        if not path.stat().st_size:
            raise UserError(f"{path}: is empty; record it again.") from error
        raise UserError(
            f"{path}: not readable as audio ({reason(error)}); convert it to wav or"
            " flac."
        ) from error
    if not audio.size:
        raise UserError(f"{path}: holds no samples; record it again.")
    if not np.isfinite(audio).all():
        count = int((~np.isfinite(audio)).sum())
        raise UserError(
            f"{path}: {count} samples are NaN or infinite; export it again."
        )
    if not audio.any():
        raise UserError(f"{path}: every sample is zero; there is nothing to convert.")
    mono, changes = to_mono(audio, source_rate, sample_rate)
    if not mono.any():
        raise UserError(
            f"{path}: its {audio.shape[1]} channels cancel each other; export one."
        )
    return Recording(mono, sample_rate, source_rate, len(audio), subtype, changes)


def to_mono(audio, source_rate: int, sample_rate: int):
    """Downmixes [N, channels] and resamples it; says in words what was done.

    Returns:
      (float32 [N'], tuple of phrases).
    """
    changes = []
    if audio.shape[1] > 1:
        changes.append(f"downmixed from {audio.shape[1]} channels")
    mono = audio.mean(axis=1)
    if source_rate != sample_rate:
        changes.append(f"resampled from {source_rate} to {sample_rate} Hz")
        mono = resample(mono, source_rate, sample_rate)
    return np.ascontiguousarray(mono, np.float32), tuple(changes)


def resample(audio, source_rate: int, sample_rate: int) -> np.ndarray:
    """Band-limited resampling by soxr, float32 [N] -> [N * ratio, rounded, >= 1]."""
    import soxr

    num_samples = max(1, round(audio.size * sample_rate / source_rate))
    # Silence after the end, for soxr leaves out a last sample, or the only one.
    padded = np.pad(audio, (0, 2 * -(-source_rate // sample_rate)))
    return soxr.resample(padded, source_rate, sample_rate, quality="VHQ")[:num_samples]


def write(path, audio, sample_rate: int, subtype: str | None = None):
    """Writes audio, float32 [N]; see `write_blocks`."""
    write_blocks(path, [audio], sample_rate, subtype)


def write_blocks(
    path,
    blocks: Iterable[np.ndarray],
    sample_rate: int,
    subtype: str | None = None,
    num_samples: int = 0,
):
    """Writes audio under a temporary name, then renames it.

    Args:
      path: its extension names the format.
      blocks: float32 [n], one after the other.
      sample_rate: in Hz.
      subtype: sample format, kept if it holds samples as they are and the format has
        it; else the format's default.
      num_samples: of all blocks; where a wav cannot hold them, it becomes an RF64.

    Raises:
      UserError: if the format is unknown, or the place cannot be written to.
    """
    import soundfile

    path = pathlib.Path(path)
    container, subtype = _format(path, subtype)
    if container == "WAV" and num_samples > MAX_WAV_SAMPLES:
        container = "RF64"
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with soundfile.SoundFile(
                partial, "w", sample_rate, 1, subtype, format=container
            ) as file:
                for block in blocks:
                    file.write(block)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(
            f"{path}: cannot be written ({reason(error)}); name another --output, or"
            " make room."
        ) from error


def _format(path: pathlib.Path, subtype: str | None) -> tuple[str, str]:
    """The container and the sample format of a file to be written."""
    import soundfile

    extension = path.suffix[1:].upper()
    container = {"AIF": "AIFF", "OPUS": "OGG"}.get(extension, extension)
    if container not in soundfile.available_formats():
        raise UserError(f"{path}: no audio format is named {extension}; write .wav.")
    # A wav may hold MP3 or ADPCM, but nobody who asks for a wav wants that.
    lossless = subtype is not None and subtype.startswith(("PCM_", "FLOAT", "DOUBLE"))
    if extension == "OPUS":
        subtype = "OPUS"
    elif not (lossless and soundfile.check_format(container, subtype)):
        subtype = soundfile.default_subtype(container)
    return container, subtype


def reason(error: Exception) -> str:
    """What soundfile or the system says, without the path and the full stop."""
    for attribute in ("error_string", "strerror"):
        if said := getattr(error, attribute, None):
            return said.rstrip(".")
    return str(error)
