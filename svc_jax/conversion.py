"""Converts recordings, file to file, in memory that does not grow with their length.

A recording is read block by block onto the disk, heard in two passes where it is long
(svc_jax.long_recordings), sung chunk by chunk, and written block by block.
"""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipeline import listening, verdicts
from svc_jax import audio_files, f0_files, pitch, synthesis
from svc_jax.bundles import Model
from svc_jax.errors import UserError
from svc_jax.features import Extracted
from svc_jax.long_recordings import LongRecording

SILENCE_SECONDS = 0.02  # of zeros in the source, from which on the result is silent
FADE_SECONDS = 0.005  # before and after
CEILING = 0.99  # of the true peak
OVERSAMPLING = 4  # by which the true peak is found (ITU-R BS.1770-4, annex 2)

REMEDIES = {  # of what is wrong with a file
    "missing": "check the path",
    "empty": "record it again",
    "unreadable": "convert it to wav or flac",
    "NaN": "export it again",
    "silent": "there is nothing to convert",
}


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is to be made of a recording.

    Attributes:
      mix: singers and their weights, of sum 1.
      transpose: see synthesis.transposition.
      seed: of the generator's noise.
      keep_rate: write at the source's sample rate, else at the model's.
      gain_db: added to the loudness that the generator is told.
      f0_path: of a table of f0 to sing instead of the source's; "" for that.
      f0_output: where the f0 that was sung is written; "" for nowhere.
    """

    mix: dict[str, float]
    transpose: str = "mean"
    seed: int = 0
    keep_rate: bool = True
    gain_db: float = 0.0
    f0_path: str = ""
    f0_output: str = ""


def convert(model: Model, source, output, wish: Wish) -> list[str]:
    """Re-sings a file.

    Args:
      model: the trained model.
      source: path of a recording, of any format, rate, length and channels.
      output: path, whose extension names a format.
      wish: what is to be made of it.

    Returns:
      What was done to the audio beside converting it, in words.

    Raises:
      UserError: if the source cannot be used, or the output not be written.
    """
    geometry = model.extractor.geometry
    with (
        listened(source, geometry.sample_rate) as (measures, audio),
        listening.Audio() as sung,
    ):
        heard, content = hear(model, audio)
        f0_hz, slipped = pitch.repair_octaves(heard.features.f0_hz, geometry.frame_rate)
        f0_hz = _asked_f0(model, f0_hz, wish)
        rate = measures.sample_rate if wish.keep_rate else geometry.sample_rate
        pieces = synthesis.sing(
            model,
            f0_hz,
            heard.features.loudness_db + np.float32(wish.gain_db),
            content,
            synthesis.voice_of(model, wish.mix)[0],
            seed=wish.seed,
        )
        pieces = _resampled(pieces, geometry.sample_rate, rate)
        silences = listening.silences(str(source), SILENCE_SECONDS)
        silences = silences * (rate / measures.sample_rate)
        peak = _keep(sung, _gated(pieces, silences, rate), rate)
        changes = list(_changes(measures, rate))
        if slipped:
            seconds = slipped / geometry.frame_rate
            changes.append(f"slips of an octave repaired, {seconds:.2f} s")
        if _is_accompanied(model, audio, heard):
            changes.append("it seems accompanied: isolate the voice first")
        if peak > CEILING:
            sung.gain = CEILING / peak
            turned_down = 20 * math.log10(peak / CEILING)
            changes.append(f"turned down by {turned_down:.1f} dB against clipping")
        num_samples = max(1, round(measures.seconds * rate))
        blocks = sung.blocks(listening.BLOCK, num_samples)
        audio_files.write_blocks(output, blocks, rate, measures.subtype, num_samples)
    if wish.f0_output:
        f0_files.write(wish.f0_output, f0_hz, geometry.frame_rate)
    return changes


@contextlib.contextmanager
def listened(source, sample_rate: int):
    """What a recording measures, and its samples, kept on the disk for as long.

    Args:
      source: path of a recording, of any format, rate, length and channels.
      sample_rate: wanted, in Hz.

    Yields:
      (listening.Measures, listening.Audio).

    Raises:
      UserError: if it cannot be used, or its samples not be kept.
    """
    try:
        measures, audio = listening.listen(str(source), sample_rate)
        with audio:
            if measures.error is not None:
                reason, detail = measures.error
                raise UserError(f"{source}: {detail}; {REMEDIES[reason]}.")
            yield measures, audio
    except OSError as error:
        raise UserError(
            f"{source}: its samples cannot be kept in {tempfile.gettempdir()}"
            f" ({audio_files.reason(error)}); make room there, or set TMPDIR."
        ) from error


def _asked_f0(model: Model, own_f0_hz, wish: Wish):
    """[T] in Hz: the source's own, or that of a table, transposed."""
    geometry, f0_hz = model.extractor.geometry, own_f0_hz
    if wish.f0_path:
        f0_hz = f0_files.read(
            wish.f0_path, len(f0_hz), geometry.frame_rate, geometry.sample_rate / 2
        )
    _, mean_hz = synthesis.voice_of(model, wish.mix)
    factor = synthesis.transposition(wish.transpose, f0_hz, mean_hz)
    return f0_hz * np.float32(factor)


def _is_accompanied(model: Model, audio: listening.Audio, heard: Extracted) -> bool:
    """Whether more than a voice seems to sound where there is pitch."""
    geometry, f0_hz = model.extractor.geometry, heard.features.f0_hz
    if not f0_hz.any():
        return False
    harmonicity = verdicts.harmonicity(
        audio.read, f0_hz, geometry.sample_rate, geometry.hop_length
    )
    return verdicts.is_accompanied(heard.f0_confidence[f0_hz > 0].mean(), harmonicity)


def _changes(measures: listening.Measures, rate: int) -> Iterator[str]:
    """In words, what reading and writing changed."""
    if measures.is_truncated:
        yield f"ends after {measures.seconds:.2f} s, before it should"
    if measures.channels > 1:
        yield f"downmixed from {measures.channels} channels"
    if rate != measures.sample_rate:
        yield f"resampled from {measures.sample_rate} to {rate} Hz"


def hear(model: Model, audio: listening.Audio):
    """What a model hears in a recording of any length.

    Returns:
      (Extracted of a recording, without axis B; the parts of its asr_features [A', D]).
    """
    extractor, geometry = model.extractor, model.extractor.geometry
    num_samples = geometry.padded_length(audio.num_samples)
    if num_samples > listening.LONG_SECONDS * geometry.sample_rate:
        recording = LongRecording(extractor, model.frozen, audio.read, num_samples)
        return recording.extract(), recording.content()
    samples = audio.read(0, num_samples)
    [extracted] = extractor.extract_recordings(model.frozen, [samples])
    return extracted, [extracted.features.asr_features]


def _resampled(pieces: Iterable[np.ndarray], rate_in: int, rate_out: int) -> Iterator:
    resample = listening.Resampler(rate_in, rate_out)
    for piece in pieces:
        yield resample(piece)
    yield resample(None)


def _gated(pieces: Iterable[np.ndarray], silences, sample_rate: int) -> Iterator:
    """Pieces with zeros where the source is digital silence, which a model is not.

    Args:
      pieces: float32 [n], one after the other.
      silences: [m, 2], beginnings and ends in samples of the pieces.
      sample_rate: of the pieces, in Hz.
    """
    fade = FADE_SECONDS * sample_rate
    first = 0
    for piece in pieces:
        at = np.arange(first, first + piece.size)
        near = (silences[:, 1] > first - fade) & (
            silences[:, 0] < first + piece.size + fade
        )
        for begin, end in silences[near]:
            distance = np.maximum(begin - at, at - end + 1)
            piece = piece * np.clip(distance / fade, 0, 1).astype(np.float32)
        yield piece
        first += piece.size


def _keep(sung: listening.Audio, pieces: Iterable[np.ndarray], rate: int) -> float:
    """Appends pieces; returns the true peak: that of the signal between samples too."""
    oversample = listening.Resampler(rate, OVERSAMPLING * rate)
    peak = 0.0
    for piece in pieces:
        sung.append(piece)
        # The samples themselves too: the filter's ripple may take a little off.
        peak = max(peak, _largest(piece), _largest(oversample(piece)))
    return max(peak, _largest(oversample(None)))


def _largest(samples) -> float:
    return float(np.abs(samples).max(initial=0))
