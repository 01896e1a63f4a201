"""Features of recordings too long to be held in memory, the same as of the whole.

Two passes over blocks of the audio (method.md, section 1). The first finds what belongs
to the whole recording: the loudest mel value, MFCCs with their means and deviations,
and what CREPE hears, through which the path of the pitch is then laid. The second reads
content, block by block. Each block is heard with its surroundings, so that no border is.
"""

import functools
import math
import tempfile
from collections.abc import Callable, Iterator

import jax
import numpy as np

from svc_jax import dsp, pitch
from svc_jax.features import Extracted, FeatureExtractor, FrozenParams
from svc_jax.geometry import ASR_FRAME_RATE, HEARING_RATE
from svc_jax.models.crepe import NUM_BINS
from svc_jax.types import Features

BLOCK_SECONDS = 20  # of audio whose features are made at once
MFCC_BLOCK = 2048  # MFCCs whose derivatives are made at once
CONTEXT_SECONDS = 0.2  # to each side: more than the windows of pitch and loudness reach


class LongRecording:
    """A recording that is read in parts, and its features.

    Args:
      extractor: makes the features.
      params: its weights.
      read: (first, last) -> float32 [last - first], samples of the recording.
      num_samples: of the recording, a multiple of asr_hop_length.
      block_seconds: length of a block.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        params: FrozenParams,
        read: Callable[[int, int], np.ndarray],
        num_samples: int,
        block_seconds: int = BLOCK_SECONDS,
    ):
        self._extractor = extractor
        self._params = params
        self._read = read
        self._num_samples = num_samples
        self._context = self._whole(CONTEXT_SECONDS)
        self._block = self._whole(block_seconds)
        self._starts = range(0, num_samples, self._block)

    def _whole(self, seconds: float) -> int:
        """The next number of samples that is on the grid of every feature."""
        geometry, f0_hop = self._extractor.geometry, self._extractor.f0_hop
        unit = math.lcm(geometry.heard.asr_hop_length, f0_hop)  # at 16 kHz
        count = -(-round(seconds * HEARING_RATE) // unit)
        return count * (unit // geometry.heard.asr_hop_length) * geometry.asr_hop_length

    def extract(self) -> Extracted:
        """All features but those of content, whose array stays empty.

        Returns:
          Extracted of numpy arrays without the axis B, asr_features [0, D]; see
          `content`.
        """
        extractor, geometry = self._extractor, self._extractor.geometry
        loudness, peaks, pitches = [], [], []
        with tempfile.TemporaryFile() as activations:
            for audio, length, block in self._blocks():
                heard = _hear(extractor, self._params, audio, length)
                heard = jax.device_get(heard)
                loudness.append(block.cut(heard["loudness"][0], geometry.hop_length))
                peaks.append(block.cut(heard["log_mel_peak"][0], self._mfcc_hop).max())
                found = [block.cut(x[0], self._f0_hop) for x in heard["pitch"]]
                if extractor.crepe is None:
                    pitches.append(found)
                else:
                    activations.write(found[0].tobytes())
                    pitches.append((found[1], found[0].max(axis=-1)))
            decoded, confidence = (np.concatenate(x) for x in zip(*pitches))
            if extractor.crepe is not None:
                path = np.asarray(_path(decoded[None]))[0]
                activations.seek(0)
                decoded = np.concatenate(
                    [
                        np.asarray(pitch.hz_around(*pair))
                        for pair in _pairs(activations, path)
                    ]
                )
        f0_hz, f0_confidence = extractor.f0_on_grid(
            decoded[None], confidence[None], geometry.num_frames(self._num_samples)
        )
        self._mfcc = self._read_mfcc(np.float32(max(peaks)))
        self._stats = self._mfcc_stats()
        num_frames = geometry.num_frames(self._num_samples)
        features = Features(
            np.asarray(f0_hz)[0],
            np.concatenate(loudness)[:num_frames],
            np.zeros((0, extractor.asr_size), np.float32),
        )
        return Extracted(features, np.asarray(f0_confidence)[0], self._stats)

    def content(self) -> Iterator[np.ndarray]:
        """After `extract`, the ASR features: float32 [A', D] for block after block."""
        extractor, geometry = self._extractor, self._extractor.geometry
        per_sample = 1 / self._mfcc_hop
        # Wav2Letter's windows reach much further than those of the other features.
        context = self._whole(extractor.wav2letter.context_frames() / ASR_FRAME_RATE)
        most = round((self._block + 2 * context) * per_sample)
        for length, block in self._places(context):
            first = round(block.first * per_sample)
            # A recording's last frame is the one that stands on its last sample.
            ends = block.first + length == self._num_samples
            count = min(most + ends, len(self._mfcc) - first)
            parts = [
                np.asarray(_normalise(*window, self._stats[None]))[0, inside]
                for *window, inside in self._windows(first, first + count)
            ]
            padded = np.zeros((1, most + 1, parts[0].shape[1]), np.float32)
            padded[0, :count] = np.concatenate(parts)
            read = _read(extractor, self._params, padded, np.asarray([count], np.int32))
            yield block.cut(np.asarray(read[0]), geometry.asr_hop_length, surplus=0)

    @property
    def _f0_hop(self) -> float:
        """Samples of the recording between two estimates of f0."""
        return self._extractor.f0_hop * self._samples_per_heard

    @property
    def _mfcc_hop(self) -> float:
        """Samples of the recording between two MFCCs."""
        return dsp.MFCC_HOP * self._samples_per_heard

    @property
    def _samples_per_heard(self) -> float:
        return self._extractor.geometry.sample_rate / HEARING_RATE

    def _places(self, context: int):
        """Yields (samples that a block is heard with, _Block)."""
        for start in self._starts:
            first = max(0, start - context)
            last = min(first + self._block + 2 * context, self._num_samples)
            block = _Block(first, start, start + self._block, self._num_samples)
            yield last - first, block

    def _blocks(self):
        """Yields (audio [1, context + block + context], length [1], _Block)."""
        for length, block in self._places(self._context):
            audio = np.zeros((1, self._block + 2 * self._context), np.float32)
            audio[0, :length] = self._read(block.first, block.first + length)
            yield audio, np.asarray([length], np.int32), block

    def _read_mfcc(self, peak) -> np.ndarray:
        """MFCCs, float32 [T, 13]."""
        parts = []
        for audio, length, block in self._blocks():
            mfcc = _mfcc(self._extractor, audio, length, peak[None])
            parts.append(block.cut(np.asarray(mfcc)[0], self._mfcc_hop))
        return np.concatenate(parts)

    def _mfcc_stats(self) -> np.ndarray:
        """Means and deviations of the MFCCs and their derivatives, float32 [3, 13, 2]."""
        total = squares = 0.0
        for *window, inside in self._windows(0, len(self._mfcc)):
            values = np.asarray(_deltas(*window), np.float64)[0, inside]
            total += values.sum(axis=0)
            squares += np.square(values).sum(axis=0)
        mean = total / len(self._mfcc)
        variance = np.maximum(squares / len(self._mfcc) - np.square(mean), 0)
        stats = np.stack([mean, np.sqrt(variance)], axis=-1).astype(np.float32)
        if self._extractor.wav2letter.per_coefficient:
            return stats
        return np.asarray(dsp.block_stats(stats))

    def _windows(self, first: int, last: int):
        """Yields (MFCCs [1, n, 13], how many are real [1], those of a part of a span).

        Each part is seen with its surroundings, for derivatives look around; n is
        always the same.
        """
        around = dsp.DELTA_WIDTH
        for start in range(first, last, MFCC_BLOCK):
            stop = min(start + MFCC_BLOCK, last)
            begin, end = max(0, start - around), min(stop + around, len(self._mfcc))
            window = np.zeros((1, MFCC_BLOCK + 2 * around, dsp.NUM_MFCC), np.float32)
            window[0, : end - begin] = self._mfcc[begin:end]
            count = np.asarray([end - begin], np.int32)
            yield window, count, slice(start - begin, stop - begin)


class _Block:
    """Where a block lies: audio is heard from `first` on, features are of [start, stop).

    All in samples of the recording, of which there are `total`.
    """

    def __init__(self, first: int, start: int, stop: int, total: int):
        self.first, self._start = first, start
        self._is_last = stop >= total
        self._stop = min(stop, total)

    def cut(self, frames, hop, surplus: int = 1):
        """Of the frames [T, ...] of what was heard, those of the block.

        Args:
          frames: on a grid of `hop` samples that begins at `first`.
          hop: in samples.
          surplus: frames that a whole recording has beyond its length.
        """
        begin = round((self._start - self.first) / hop)
        end = round((self._stop - self.first) / hop)
        return frames[begin : end + surplus * self._is_last]


def _pairs(activations, path):
    """(activation [t, 360], path [t]) in turns, read from a file of float32."""
    at_once = 8192  # frames
    for first in range(0, len(path), at_once):
        part = path[first : first + at_once]
        data = activations.read(len(part) * NUM_BINS * 4)
        yield np.frombuffer(data, np.float32).reshape(-1, NUM_BINS), part


_path = jax.jit(pitch.path_through)


@functools.partial(jax.jit, static_argnums=0)
def _hear(extractor: FeatureExtractor, params, audio, length):
    """What can be heard in one pass.

    Returns:
      dict of loudness [1, t]; log_mel_peak [1, t], the loudest mel value of each frame;
      pitch, (activation, strongest bin) of CREPE or (f0, confidence) of YIN.
    """
    audio, length = extractor.hear(audio), extractor.heard_length(length)
    hop_length = extractor.geometry.heard.hop_length
    loudness = dsp.loudness_db(audio, HEARING_RATE, hop_length, length)
    log_mel_peak = dsp.log_mel(audio, length).max(axis=-1)
    if extractor.crepe is None:
        heard = pitch.yin(audio, HEARING_RATE, extractor.f0_hop)
    else:
        activation = pitch.crepe_activation(
            extractor.crepe, params.crepe, audio, extractor.f0_hop
        )
        heard = activation, pitch.observed_bins(activation)
    return {"loudness": loudness, "log_mel_peak": log_mel_peak, "pitch": heard}


@functools.partial(jax.jit, static_argnums=0)
def _mfcc(extractor: FeatureExtractor, audio, length, peak):
    audio, length = extractor.hear(audio), extractor.heard_length(length)
    return dsp.cepstrum(dsp.log_mel(audio, length), peak)


_deltas = jax.jit(dsp.deltas)


@jax.jit
def _normalise(mfcc, num_frames, stats):
    """MFCCs [1, T, 13] -> normalised with their derivatives [1, T, 39]."""
    return dsp.normalise_mfcc(dsp.deltas(mfcc, num_frames), stats)


@functools.partial(jax.jit, static_argnums=0)
def _read(extractor: FeatureExtractor, params, mfcc, num_frames):
    activations = extractor.wav2letter.apply(
        {"params": params.wav2letter}, mfcc, num_frames
    )
    return activations[extractor.asr_layer]
