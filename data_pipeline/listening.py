"""Reads a recording of any length in blocks, and measures it on the way."""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator

import numpy as np

from svc_jax import audio_files

LONG_SECONDS = 16  # from here on, features are made block by block
BLOCK = 1 << 14  # samples of a file read at once; what a break in it costs
IN_MEMORY = 64 << 20  # bytes of audio; what is longer waits on disk
MAX_SAMPLES = 1 << 40  # in a file
UNKNOWN_BYTES = 0x7FF00000  # and more: what a header says that was written to a pipe
CLIPPED_RUN = 3  # equal samples at the peak
CLIPPED_PEAK = 0.2  # under it, equal samples are rounding
_ROUNDING = 2.0**-15  # of 16 bits
_SILENCE = 1e-10  # power of a frame without any; -100 dB


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is known of a file from its samples alone.

    Attributes:
      error: why it cannot be used, as a verdict's reason and detail; or None.
      sample_rate: in Hz, of the file.
      channels, subtype: of the file, as soundfile names it.
      seconds: that could be read.
      is_truncated: whether the file ends before it should.
      sha256: of the samples, whatever file holds them.
      peak: largest absolute sample.
      dc_offset: mean sample, of the channel where it is largest.
      clipped: share of samples in runs at the peak.
    """

    error: tuple[str, str] | None = None
    sample_rate: int = 0
    channels: int = 0
    subtype: str = ""
    seconds: float = 0.0
    is_truncated: bool = False
    sha256: str = ""
    peak: float = 0.0
    dc_offset: float = 0.0
    clipped: float = 0.0

    @classmethod
    def from_json(cls, values: dict) -> "Measures":
        """From plain values, as dataclasses.asdict and JSON give them."""
        error = values["error"] and tuple(values["error"])
        return cls(**{**values, "error": error})


class Audio(contextlib.AbstractContextManager):
    """Mono samples that may be more than fit into memory; to be closed.

    Attributes:
      num_samples: how many.
      gain: that they are read with.
    """

    def __init__(self):
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self.num_samples = 0
        self.gain = 1.0

    def append(self, samples: np.ndarray):
        """Adds float32 [n]."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(samples, np.float32).tobytes())
        self.num_samples += samples.size

    def read(self, first: int, last: int) -> np.ndarray:
        """Samples [first, last), float32; silence beyond the end."""
        self._file.seek(4 * first)
        known = max(0, min(last, self.num_samples) - first)
        samples = np.frombuffer(self._file.read(4 * known), np.float32)
        if self.gain != 1.0:
            samples = samples * np.float32(self.gain)
        return np.pad(samples, (0, last - first - known))

    def blocks(self, size: int, num_samples: int | None = None) -> Iterator[np.ndarray]:
        """All samples in blocks of `size`; the last one is shorter."""
        total = self.num_samples if num_samples is None else num_samples
        for first in range(0, total, size):
            yield self.read(first, min(first + size, total))

    def __exit__(self, *_):
        self._file.close()


def listen(path: str, sample_rate: int) -> tuple[Measures, Audio]:
    """Reads a file as mono at a sample rate, as audio_files.read does, in any length.

    Args:
      path: may be gs://.
      sample_rate: wanted, in Hz.

    Returns:
      (Measures; Audio, empty where measures.error says why).
    """
    import soundfile

    audio = Audio()
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_opened(path, stack))
        except (OSError, soundfile.LibsndfileError, TypeError) as error:
            return Measures(error=_unreadable(path, error)), audio
        about = {
            "sample_rate": file.samplerate,
            "channels": file.channels,
            "subtype": file.subtype,
        }
        announced = _announced(file)
        first = _FirstPass(file.channels)
        resample = Resampler(file.samplerate, sample_rate)
        broken = None
        try:
            for block in _blocks(file):
                audio.append(resample(first.add(block).mean(axis=1)))
        except soundfile.LibsndfileError as error:
            broken = error  # what was read before may still be used
        audio.append(resample(None))
        if not first.count:
            return Measures(error=_unreadable(path, broken), **about), audio
        lost = 0 < announced - first.count < MAX_SAMPLES  # an unknown length is more
        is_truncated = lost or broken is not None or _ogg_lacks_end(path)
        measures = first.measures(about, is_truncated)
        if measures.error is None and not any(map(np.any, audio.blocks(BLOCK))):
            error = "silent", f"its {file.channels} channels cancel each other"
            measures = dataclasses.replace(measures, error=error)
        if measures.error is None and measures.peak >= CLIPPED_PEAK:
            clipped = _clipped(path, measures.peak)
            measures = dataclasses.replace(measures, clipped=clipped)
    return measures, audio


class _FirstPass:
    """Sums over blocks of samples."""

    def __init__(self, channels: int):
        self.count = 0
        self._sums = np.zeros(channels)
        self._peak = 0.0
        self._bad = 0
        self._hash = hashlib.sha256()

    def add(self, block: np.ndarray) -> np.ndarray:
        """Adds [n, channels]; returns them, silent where they are no numbers."""
        self._hash.update(np.ascontiguousarray(block).tobytes())
        finite = np.isfinite(block)
        if not finite.all():
            self._bad += int((~finite).sum())
            block = np.where(finite, block, 0.0)
        self.count += len(block)
        if len(block):
            self._sums += block.sum(axis=0, dtype=np.float64)
            self._peak = max(self._peak, float(np.abs(block).max()))
        return block

    def measures(self, about: dict, is_truncated: bool) -> Measures:
        """The sums as Measures."""
        rate, channels = about["sample_rate"], about["channels"]
        self._hash.update(f"{rate} {channels}".encode())
        error = None
        if self._bad:
            error = "NaN", f"{self._bad} samples are NaN or infinite"
        elif not self._peak:
            error = "silent", "every sample is zero"
        return Measures(
            error=error,
            seconds=self.count / rate,
            is_truncated=is_truncated,
            sha256=self._hash.hexdigest(),
            peak=self._peak,
            dc_offset=float(max(self._sums / self.count, key=abs)),
            **about,
        )


class Resampler:
    """Resamples block by block what soxr would give at once; None ends."""

    def __init__(self, source_rate: int, sample_rate: int):
        import soxr

        self._ratio = sample_rate / source_rate
        self._taken = self._given = 0
        self._stream = None
        if source_rate != sample_rate:
            self._stream = soxr.ResampleStream(
                source_rate, sample_rate, 1, dtype="float32", quality="VHQ"
            )
            # As in audio_files.resample: soxr leaves out a last sample.
            self._silence = np.zeros(2 * -(-source_rate // sample_rate), np.float32)

    def __call__(self, block: np.ndarray | None) -> np.ndarray:
        if self._stream is None:
            return np.zeros(0, np.float32) if block is None else block
        if block is not None:
            self._taken += block.size
            resampled = self._stream.resample_chunk(block)
        else:
            resampled = self._stream.resample_chunk(self._silence, last=True)
            total = max(1, round(self._taken * self._ratio)) if self._taken else 0
            resampled = resampled[: total - self._given]
        self._given += resampled.size
        return resampled


def _opened(path: str, stack: contextlib.ExitStack):
    import soundfile

    if "://" not in path:
        return soundfile.SoundFile(path)
    from etils import epath

    return soundfile.SoundFile(stack.enter_context(epath.Path(path).open("rb")))


def _blocks(file) -> Iterator[np.ndarray]:
    """[n, channels] until the end. (file.blocks fills up what a file lacks with noise.)"""
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        yield block


def _announced(file) -> int:
    """Samples per channel that a file's header tells of."""
    for line in file.extra_info.splitlines():
        name, _, value = line.strip().partition(":")
        # What libsndfile says of a chunk that reaches beyond the file's end.
        if name.strip() in ("data", "SSND") and "(should be" in value:
            told, held = value.replace(")", "").split("(should be")
            if int(told) >= UNKNOWN_BYTES:
                break
            return round(file.frames * int(told) / max(1, int(held)))
    return file.frames


def _ogg_lacks_end(path: str) -> bool:
    """Whether a file is Ogg and its last page is not marked as such."""
    from etils import epath

    page = b"OggS"
    with epath.Path(path).open("rb") as file:
        if file.read(len(page)) != page:
            return False
        size = epath.Path(path).stat().length
        file.seek(max(0, size - (1 << 17)))  # a page has at most 64 KiB
        tail = file.read()
    flags = tail[tail.rfind(page) + 5 :][:1]
    return not flags or not flags[0] & 4


def _unreadable(path: str, error: Exception | None) -> tuple[str, str]:
    from etils import epath

    if not epath.Path(path).exists():
        return "missing", "there is no such file"
    if error is None or not epath.Path(path).stat().length:
        return "empty", "holds no samples"
    return "unreadable", f"not readable as audio ({audio_files.reason(error)})"


def silences(path: str, shortest: float) -> np.ndarray:
    """Where every sample is zero, [n, 2]: first sample and the one after the last.

    Args:
      path: of a file that `listen` could read.
      shortest: in seconds; what is shorter is left out.
    """
    import soundfile

    found, start, count = [], None, 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(path, stack))
        with contextlib.suppress(soundfile.LibsndfileError):  # what breaks off
            for block in _blocks(file):
                silent = block.mean(axis=1) == 0
                before = start is not None
                for edge in np.flatnonzero(np.diff(silent, prepend=before)):
                    if silent[edge]:
                        start = count + edge
                    else:
                        found.append((start, count + edge))
                        start = None
                count += len(block)
        if start is not None:
            found.append((start, count))
        least = shortest * file.samplerate
    runs = [(first, last) for first, last in found if last - first >= least]
    return np.asarray(runs, np.int64).reshape(-1, 2)


def _clipped(path: str, peak: float) -> float:
    """Share of samples in runs of at least CLIPPED_RUN at the peak, in any channel."""
    import soundfile

    clipped = total = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(path, stack))
        with contextlib.suppress(soundfile.LibsndfileError):
            for block in _blocks(file):
                total += block.size
                at_peak = np.abs(block) >= min(peak - _ROUNDING, 1.0 - _ROUNDING)
                padded = np.pad(at_peak, ((1, 1), (0, 0))).T
                edges = np.flatnonzero(np.diff(padded.ravel())).reshape(-1, 2)
                runs = edges[:, 1] - edges[:, 0]
                clipped += int(runs[runs >= CLIPPED_RUN].sum())
    return clipped / max(1, total)


def levels_db(audio: Audio, hop_length: int, num_frames: int) -> np.ndarray:
    """RMS of each frame of `hop_length` samples, in dB below full scale: [A]."""
    parts = []
    for block in audio.blocks(hop_length * 4096, hop_length * num_frames):
        power = np.square(block.reshape(-1, hop_length)).mean(axis=1)
        parts.append(10 * np.log10(np.maximum(power, _SILENCE)))
    return np.concatenate(parts)


def loudness_lufs(audio: Audio, sample_rate: int) -> float:
    """Integrated loudness (ITU-R BS.1770-4), -inf where all is under its gate.

    Block by block: pyloudnorm weighs and measures, the gating over all blocks is here.
    """
    from pyloudnorm import Meter

    meter = Meter(sample_rate)
    window, step = round(0.4 * sample_rate), round(0.1 * sample_rate)
    chunk, before = 600 * step, 20 * step  # a minute; the weighting filters' memory
    loudness = []
    for first in range(0, max(1, audio.num_samples - window + 1), chunk):
        begin = max(0, first - before)
        end = min(first + chunk - step + window, audio.num_samples)
        samples = audio.read(begin, end).astype(np.float64)
        if samples.size < window:  # too short to be measured but repeated
            samples = np.resize(samples, window)
        meter.integrated_loudness(samples)
        loudness += meter.blockwise_loudness[(first - begin) // step :]
    power = 10 ** ((np.asarray(loudness) + 0.691) / 10)
    gated = power[np.asarray(loudness) >= -70.0]
    if not gated.size:
        return -np.inf
    gated = gated[gated > gated.mean() / 10]
    return float(10 * np.log10(gated.mean()) - 0.691)
