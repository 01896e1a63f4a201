"""From audio to what the generator is told; one path for every use.

Preparation, conversion and the mixup term call the same `FeatureExtractor`. At any
sample rate it makes its features from a copy at 16 kHz, so that a feature means the
same everywhere.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from svc_jax import dsp, excitation, pitch, resampling
from svc_jax.geometry import HEARING_RATE, FrameGeometry
from svc_jax.models.crepe import FRAME_LENGTH, Crepe
from svc_jax.models.wav2letter import Wav2Letter
from svc_jax.types import Features


@flax.struct.dataclass
class FrozenParams:
    """Weights of the networks that are never trained here.

    Attributes:
      crepe: of CREPE, or None where f0 comes from YIN.
      wav2letter: of Wav2Letter.
    """

    crepe: Any
    wav2letter: Any


@flax.struct.dataclass
class Extracted:
    """Features of recordings and what else is known from them.

    Attributes:
      features: f0_hz, loudness_db [B, T], asr_features [B, A, D].
      f0_confidence: [B, T] in [0, 1].
      asr_stats: [B, 3, 13, 2], mean and deviation of MFCC, delta, delta-delta.
    """

    features: Features
    f0_confidence: jax.Array
    asr_stats: jax.Array


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """Extracts features and perceptual activations with frozen networks.

    Attributes:
      geometry: grids of audio and features.
      crepe: the pitch network, or None for YIN.
      wav2letter: the content network.
      asr_layer: whose activations are `asr_features`: hidden, wide or logits.
      f0_hop: samples at 16 kHz between two estimates of f0 (160 is CREPE's own step).
    """

    geometry: FrameGeometry
    crepe: Crepe | None
    wav2letter: Wav2Letter
    asr_layer: str = "wide"
    f0_hop: int = 160

    def init(self, rng) -> FrozenParams:
        """Random weights, for shapes and speeds; what is sung by is read from files."""
        rng_crepe, rng_asr = jax.random.split(rng)
        crepe = (
            self.crepe and self.crepe.init(rng_crepe, jnp.zeros((1, 1024)))["params"]
        )
        wav2letter = self.wav2letter.init(rng_asr, jnp.zeros((1, 20, 39)))["params"]
        return FrozenParams(crepe, wav2letter)

    @property
    def asr_size(self) -> int:
        """D, the size of an ASR feature."""
        return {
            "hidden": self.wav2letter.channels,
            "wide": self.wav2letter.wide_channels,
            "logits": self.wav2letter.num_labels,
        }[self.asr_layer]

    def extract(
        self, params: FrozenParams, audio, length=None, asr_stats=None, viterbi=True
    ) -> Extracted:
        """Features of recordings.

        Args:
          params: weights of the frozen networks.
          audio: [B, N], N a multiple of asr_hop_length.
          length: [B] real samples of the N, multiples of asr_hop_length; None for all.
          asr_stats: [B, 3, 13, 2] of the recordings these are cut from; None: their own.
          viterbi: decode f0 by Viterbi; otherwise by argmax (for short segments).

        Returns:
          Extracted, with T = N / hop_length and A = N / asr_hop_length.
        """
        audio_16k, length = self.hear(audio), self.heard_length(length)
        f0_hz, confidence = self._f0(params, audio_16k, length, viterbi)
        loudness = dsp.loudness_db(
            audio_16k, HEARING_RATE, self.geometry.heard.hop_length, length
        )
        activations, asr_stats = self._read(params, audio_16k, length, asr_stats)
        features = Features(f0_hz, loudness, activations[self.asr_layer])
        return Extracted(features, confidence, asr_stats)

    def hear(self, audio):
        """Audio at 16 kHz: [B, N] -> [B, N * 16000 / sample_rate]."""
        return resampling.resample(audio, self.geometry.sample_rate, HEARING_RATE)

    def heard_length(self, length):
        """Real samples, [B] or None, at 16 kHz."""
        if length is None:
            return None
        heard = self.geometry.heard.asr_hop_length
        return length // self.geometry.asr_hop_length * heard

    def f0(self, params: FrozenParams, audio, length=None, viterbi=True):
        """f0 and its confidence on the grid of hop_length.

        Args:
          params, audio, length, viterbi: as in `extract`.

        Returns:
          (f0_hz, 0 where unvoiced; confidence), [B, N / hop_length].
        """
        return self._f0(params, self.hear(audio), self.heard_length(length), viterbi)

    def _f0(self, params: FrozenParams, audio_16k, length, viterbi):
        real_frames = None
        if length is not None:
            real = dsp.mask(length, audio_16k.shape[1])
            audio_16k = jnp.where(real, audio_16k, 0.0)
            real_frames = 1 + length // self.f0_hop
        if self.crepe is None:
            f0_hz, confidence = pitch.yin(audio_16k, HEARING_RATE, self.f0_hop)
        else:
            activation = pitch.crepe_activation(
                self.crepe, params.crepe, audio_16k, self.f0_hop
            )
            if viterbi:
                f0_hz, confidence = pitch.decode_viterbi(activation, real_frames)
            else:
                f0_hz, confidence = pitch.decode_argmax(activation)
        if length is not None:
            f0_hz, confidence = (
                dsp.hold_last(x, real_frames) for x in (f0_hz, confidence)
            )
        num_frames = audio_16k.shape[1] // self.geometry.heard.hop_length
        return self.f0_on_grid(f0_hz, confidence, num_frames)

    def f0_on_grid(self, f0_hz, confidence, num_frames: int):
        """f0 of every estimate to f0 on the grid of hop_length, 0 where unvoiced.

        Args:
          f0_hz, confidence: [B, T'], f0_hop samples at 16 kHz apart.
          num_frames: T.

        Returns:
          (f0_hz, confidence), [B, T].
        """
        f0_hz = pitch.voiced_f0(f0_hz, confidence)
        hop_length = self.geometry.heard.hop_length
        nearest = (np.arange(num_frames) * hop_length + self.f0_hop // 2) // self.f0_hop
        nearest = np.minimum(nearest, confidence.shape[1] - 1)
        f0_hz = excitation.interpolate_f0(f0_hz, self.f0_hop, hop_length, num_frames)
        return f0_hz, confidence[:, nearest]

    def read(self, params: FrozenParams, audio, length=None, asr_stats=None):
        """Activations of Wav2Letter, on the grid of asr_hop_length.

        Args:
          params, audio, length, asr_stats: as in `extract`.

        Returns:
          (dict of hidden, wide, logits [B, A, ...]; asr_stats [B, 3, 13, 2]).
        """
        length = self.heard_length(length)
        return self._read(params, self.hear(audio), length, asr_stats)

    def _read(self, params: FrozenParams, audio_16k, length, asr_stats):
        num_frames = None if length is None else 1 + length // dsp.MFCC_HOP
        blocks = dsp.deltas(dsp.mfcc(audio_16k, length), num_frames)
        if asr_stats is None:
            asr_stats = dsp.mfcc_stats(
                blocks, num_frames, self.wav2letter.per_coefficient
            )
        activations = self.wav2letter.apply(
            {"params": params.wav2letter},
            dsp.normalise_mfcc(blocks, asr_stats),
            num_frames,
        )
        num_asr_frames = audio_16k.shape[1] // self.geometry.heard.asr_hop_length
        activations = {k: v[:, :num_asr_frames] for k, v in activations.items()}
        return activations, asr_stats

    def pitch_embedding(self, params: FrozenParams, audio):
        """CREPE's fifth block on consecutive frames, for L_crepe (method.md, 3).

        Args:
          params: weights of the frozen networks.
          audio: [B, N].

        Returns:
          [B, N // 1024, D] at 16 kHz; the gain of the audio does not change it while a frame's
          deviation is above 1e-3.
        """
        frames = dsp.frame(self.hear(audio), FRAME_LENGTH, FRAME_LENGTH)
        frames = pitch.normalise_frames(frames, 1e-3)
        return self.crepe.apply({"params": params.crepe}, frames)[1]

    def extract_recordings(
        self, params: FrozenParams, recordings, batch_size: int = 1
    ) -> list[Extracted]:
        """Features of whole recordings of any lengths, on the host.

        Lengths are padded up to a few sizes, so that few programs are compiled; the
        result is that of each recording alone.

        Args:
          params: weights of the frozen networks.
          recordings: list of float32 [n].
          batch_size: how many of about one length to extract at once.

        Returns:
          For each one, Extracted of numpy arrays without the axis B, its length
          padded to the next multiple of asr_hop_length.
        """
        lengths = [self.geometry.padded_length(audio.size) for audio in recordings]
        buckets: dict[int, list[int]] = {}
        for number, length in enumerate(lengths):
            buckets.setdefault(self._bucket(length), []).append(number)
        extracted = {}
        for bucket, numbers in buckets.items():
            for first in range(0, len(numbers), batch_size):
                batch = numbers[first : first + batch_size]
                padded = np.zeros((batch_size, bucket), np.float32)
                # What fills up the last batch is as short as can be.
                real = np.full(batch_size, self.geometry.asr_hop_length, np.int32)
                for row, number in enumerate(batch):
                    padded[row, : recordings[number].size] = recordings[number]
                    real[row] = lengths[number]
                result = jax.device_get(_extract(self, params, padded, real))
                for row, number in enumerate(batch):
                    extracted[number] = self._row(result, row, lengths[number])
        return [extracted[number] for number in range(len(recordings))]

    def label_scores(self, params: FrozenParams, audio) -> np.ndarray:
        """What Wav2Letter reads in a whole recording, on the host.

        Args:
          params: weights of the frozen networks.
          audio: float32 [n].

        Returns:
          [A, num_labels].
        """
        length = self.geometry.padded_length(audio.size)
        padded = np.zeros((1, self._bucket(length)), np.float32)
        padded[0, : audio.size] = audio
        scores = _label_scores(self, params, padded, np.asarray([length], np.int32))
        return np.asarray(scores)[0, : self.geometry.num_asr_frames(length)]

    def _row(self, result: Extracted, row: int, length: int) -> Extracted:
        """One recording of a batch, without what it was padded by."""
        frames = self.geometry.num_frames(length)
        asr_frames = self.geometry.num_asr_frames(length)
        features = result.features
        return Extracted(
            Features(
                features.f0_hz[row, :frames],
                features.loudness_db[row, :frames],
                features.asr_features[row, :asr_frames],
            ),
            result.f0_confidence[row, :frames],
            result.asr_stats[row],
        )

    def _bucket(self, length: int) -> int:
        """The next of the sizes 1 s, 1.25 s, 1.5 s, 1.75 s, 2 s, 2.5 s, 3 s, ..."""
        octave = self.geometry.padded_length(self.geometry.sample_rate)
        while octave * 2 < length:
            octave *= 2
        quarter = max(1, octave // 4)
        steps = -(-max(length - octave, 0) // quarter)
        return self.geometry.padded_length(octave + steps * quarter)


@functools.partial(jax.jit, static_argnums=0)
def _extract(extractor: FeatureExtractor, params, audio, length) -> Extracted:
    return extractor.extract(params, audio, length)


@functools.partial(jax.jit, static_argnums=0)
def _label_scores(extractor: FeatureExtractor, params, audio, length):
    return extractor.read(params, audio, length)[0]["logits"]
