"""A generator at the frame rate: filters a pulse train and noise by inverse STFT.

Source and filter (Fant 1960): the source is known exactly, its pitch is f0; a network
that runs once a frame, not once a sample, says how each frame's spectrum is shaped.
The inverse-STFT head is that of Vocos (arXiv 2306.00814), the source that of
neural source-filter models (arXiv 1810.11946).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from svc_jax import excitation, stft
from svc_jax.geometry import ASR_FRAME_RATE, FrameGeometry
from svc_jax.models.frames import (
    ConvNeXtBlock,
    Delay,
    Margin,
    RunningSum,
    standardise,
)
from svc_jax.models.layers import VoiceTable
from svc_jax.types import Features, Noise

REFERENCE_HZ = 220.0  # log f0 is counted from here
MAX_LOG_GAIN = 6.0  # of a filter over the loudness: in silence it stays silent
_SOURCE_LOOKAHEAD = 1 + stft.AFTER  # frames: the following f0, then the analysis


class SourceFilterGenerator(nn.Module):
    """Sings the features in a voice.

    Attributes:
      num_singers: rows of the embedding table; with one singer there is none.
      embedding_size: of a singer's embedding.
      sample_rate: in Hz.
      hop_length: samples per frame of f0 and loudness.
      channels: of the backbone.
      num_blocks: of the backbone.
      kernel_size: of its convolutions, in frames.
      lookahead: frames after its own that each block sees.
      expansion: hidden channels of a block, in multiples of `channels`.
      harmonics: the source is all harmonics; otherwise the paper's single sine.
      dtype: of what the backbone computes; the source, its filters and the transforms
        are float32.
      remat: a policy of `layers.REMAT`.
    """

    num_singers: int
    embedding_size: int = 64
    sample_rate: int = 16_000
    hop_length: int = 160
    channels: int = 256
    num_blocks: int = 8
    kernel_size: int = 7
    lookahead: int = 1
    expansion: int = 3
    harmonics: bool = True
    dtype: Any = jnp.float32
    remat: Callable | None = None

    def setup(self):
        self.content = nn.Dense(self.channels, dtype=self.dtype)
        self.prosody = nn.Dense(self.channels)
        self.blocks = [
            ConvNeXtBlock(
                self.kernel_size, self.lookahead, self.expansion, 1 / self.num_blocks
            )
            for _ in range(self.num_blocks)
        ]
        self.filters = nn.Dense(
            4 * stft.num_bins(self.hop_length),
            kernel_init=nn.initializers.variance_scaling(0.01, "fan_in", "normal"),
        )
        self.singers = VoiceTable(self.num_singers, self.embedding_size)
        self.next_f0 = Margin(0, 1)
        self.turned = RunningSum()
        self.late_noise = Delay(1)
        self.late_source = Delay(1)
        self.hops = Margin(stft.BEFORE, stft.AFTER)
        self.late_spectra = Delay(self._lookahead_frames() - _SOURCE_LOOKAHEAD)
        self.late_gain = Delay(self._lookahead_frames())
        self.overlap = Margin(stft.AFTER, stft.BEFORE)
        self.overlap_real = Margin(stft.AFTER, stft.BEFORE)

    def embed(self, singer_id) -> jax.Array:
        """[B] int32 -> voices [B, embedding_size]; of size 0 with one singer."""
        return self.singers(singer_id)

    def __call__(self, features: Features, voice, noise: Noise, real=None) -> jax.Array:
        """Synthesises audio.

        With the collection `stream` mutable it sings a block of a stream, and says its
        audio `latency_samples` later; see `svc_jax.synthesis.stream`.

        Args:
          features: f0_hz [B, T], loudness_db [B, T], asr_features [B, A, D].
          voice: [B, embedding_size], from `embed`, or a mixture of such.
          noise: excitation [B, N] and phase [B]; its z is not used.
          real: [B, T], 1 for the frames of the recording and 0 for those after it, by
            which a stream comes to its end; None: all are real.

        Returns:
          [B, N], N = T * hop_length.
        """
        batch_size, total = features.f0_hz.shape
        real = jnp.ones((batch_size, total)) if real is None else real
        real = real[..., None]
        pulses, noises = self.source(features.f0_hz, noise, real)
        x, real = self.backbone(features, voice, real)
        gain = self.late_gain(10 ** (features.loudness_db[..., None] / 20))
        spectra = gain * self.filtered(x, pulses, noises)
        audio = stft.inverse(self.overlap(spectra), self.overlap_real(real))
        return audio.reshape(batch_size, -1)

    def source(self, f0_hz, noise: Noise, real):
        """Spectra of the pulse train, or sine, and of the noise: [B, T, 2 F] each."""
        batch_size, total = f0_hz.shape
        f0_hz = self.next_f0(f0_hz[..., None])[..., 0]
        f0_hz, following_hz = f0_hz[:, :total], f0_hz[:, 1 : total + 1]
        grid = {"sample_rate": self.sample_rate, "hop_length": self.hop_length}
        advance = excitation.frame_advance(f0_hz, following_hz, **grid)
        real = self.late_source(real)
        # Before its first frame the sine stands still.
        advance = jnp.where(real[..., 0] > 0, advance, 0)
        start = self.turned(advance) - advance
        phase = excitation.to_turns(start) + noise.phase[:, None]
        wave = excitation.pulse_train if self.harmonics else excitation.sine
        pulses = wave(f0_hz, following_hz, phase, **grid)
        noises = noise.excitation.reshape(batch_size, total, self.hop_length)
        hops = jnp.stack([pulses, self.late_noise(noises)], axis=-1)
        hops = hops * real[..., None]
        hops = self.hops(hops.reshape(batch_size, total, -1))
        hops = hops.reshape(batch_size, -1, self.hop_length, 2)
        spectra = [stft.forward(hops[..., k]) for k in range(2)]
        spectra = self.late_spectra(jnp.concatenate(spectra, axis=-1))
        return jnp.split(spectra, 2, axis=-1)

    def backbone(self, features: Features, voice, real):
        """What each frame's filters are made of: ([B, T, channels], its `real`)."""
        f0_hz, loudness_db = features.f0_hz[..., None], features.loudness_db[..., None]
        voiced = f0_hz > 0
        octaves = jnp.log2(jnp.where(voiced, f0_hz, REFERENCE_HZ) / REFERENCE_HZ)
        prosody = [loudness_db / 20 + 3, octaves, voiced]
        repeats = f0_hz.shape[1] // features.asr_features.shape[1]
        content = self.content(standardise(features.asr_features))
        x = self.prosody(jnp.concatenate(prosody, axis=-1))
        x = standardise(x + jnp.repeat(content, repeats, axis=1)).astype(self.dtype)
        for block in self.blocks:
            call = type(block).__call__
            if self.remat:
                call = nn.remat(call, policy=self.remat)
            x, real = call(block, x, voice, real)
        return standardise(x.astype(jnp.float32)), real

    def filtered(self, x, pulses, noises):
        """[B, T, channels] and the source's spectra -> the singing's [B, T, 2 F]."""
        filters = jnp.split(self.filters(x), 4, axis=-1)
        pulse_gain, pulse_phase, noise_gain, noise_phase = filters

        def shape(spectra, log_gain, phase):
            real, imaginary = jnp.split(spectra, 2, axis=-1)
            gain = jnp.exp(jnp.minimum(log_gain, MAX_LOG_GAIN))
            along, across = gain * jnp.cos(phase), gain * jnp.sin(phase)
            turned = real * along - imaginary * across
            return jnp.concatenate([turned, real * across + imaginary * along], axis=-1)

        return shape(pulses, pulse_gain, pulse_phase) + shape(
            noises, noise_gain, noise_phase
        )

    def _lookahead_frames(self) -> int:
        return self.num_blocks * self.lookahead

    def check(self, grid: FrameGeometry):
        """Raises ValueError unless the module can sing on a grid of features."""
        if self._lookahead_frames() < _SOURCE_LOOKAHEAD:
            raise ValueError(
                f"num_blocks {self.num_blocks} of lookahead {self.lookahead} see less"
                f" than the {_SOURCE_LOOKAHEAD} frames ahead that the source needs."
            )
        if not self.lookahead < self.kernel_size:
            raise ValueError(
                f"lookahead {self.lookahead} must be below kernel_size"
                f" {self.kernel_size}."
            )

    @property
    def latency_samples(self) -> int:
        """How late the audio of a stream is."""
        return (self._lookahead_frames() + stft.BEFORE) * self.hop_length

    def parts(self) -> dict[str, tuple[float, int]]:
        """Of each part, the rate in Hz and the receptive field in samples of audio."""
        rate = self.sample_rate / self.hop_length
        block = (rate, self.kernel_size * self.hop_length)
        frames = self.num_blocks * (self.kernel_size - 1) + stft.OVERLAP
        return {
            "": (self.sample_rate, frames * self.hop_length),
            "content": (ASR_FRAME_RATE, self.sample_rate // ASR_FRAME_RATE),
            "prosody": (rate, self.hop_length),
            **{f"blocks_{index}": block for index in range(self.num_blocks)},
            "filters": (rate, self.hop_length),
        }

    def context_samples(self) -> int:
        """How far, in samples to each side, an output sample depends on its input."""
        behind = self.num_blocks * (self.kernel_size - 1 - self.lookahead)
        frames = max(behind, self._lookahead_frames()) + 2 * stft.OVERLAP
        return frames * self.hop_length

    def audio_context_samples(self) -> int:
        """The same for noise and f0: all layers see what the first one sees."""
        return self.context_samples()
