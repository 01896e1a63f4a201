"""The paper's generator: context stacks and a non-causal WaveNet (method.md, 2)."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from svc_jax import excitation
from svc_jax.geometry import FrameGeometry
from svc_jax.models.convolutions import convolve
from svc_jax.models.gated_layers import weights_of
from svc_jax.models.layers import (
    ContextStack,
    Conv,
    DilatedLayers,
    GatedLayer,
    Upsample,
    VoiceTable,
    receptive_field,
)
from svc_jax.types import Features, Noise

RESIDUAL_SCALE = math.sqrt(0.5)  # so that sums keep their level


class WaveNetGenerator(nn.Module):
    """Sings the features in a voice (arXiv 2008.02830, section 3).

    Attributes:
      num_singers: rows of the embedding table; with one singer there is none.
      embedding_size: of a singer's embedding.
      sample_rate: in Hz.
      hop_length: samples per frame of f0 and loudness.
      channels, gate_channels, skip_channels: of the WaveNet.
      kernel_size: of every dilated convolution.
      dilations: of the WaveNet's layers.
      context_channels, context_gate_channels: of each context stack.
      loudness_dilations, asr_dilations, sine_dilations: of the context stacks.
      loudness_factors, asr_factors: from the frame rates to the audio rate.
      num_harmonics: of the sine beside its fundamental; 0 is the paper.
      dtype: of what the layers compute; the sine and the audio are float32.
      remat: a policy of `layers.REMAT`.
      convolution: one of `convolutions.CONVOLUTIONS`, of the dilated ones.
      gated_layers: what computes the layers of a stack at once on TPUs, as
        `gated_layers.gated_layers` does; None: they are modules, one after the other.
    """

    num_singers: int
    embedding_size: int = 64
    sample_rate: int = 16_000
    hop_length: int = 64
    channels: int = 64
    gate_channels: int = 128
    skip_channels: int = 64
    kernel_size: int = 3
    dilations: Sequence[int] = tuple(2**k for k in range(10)) * 3
    context_channels: int = 64
    context_gate_channels: int = 128
    loudness_dilations: Sequence[int] = (1, 2, 4, 8) * 4
    asr_dilations: Sequence[int] = (1, 2) * 8
    sine_dilations: Sequence[int] = tuple(2**k for k in range(8)) * 2
    loudness_factors: Sequence[int] = (4, 4, 4)
    asr_factors: Sequence[int] = (4, 4, 4, 5)
    num_harmonics: int = 0
    dtype: Any = jnp.float32
    remat: Callable | None = None
    convolution: Callable = convolve
    gated_layers: Callable | None = None

    def setup(self):
        def stack(dilations):
            return ContextStack(
                self.context_channels,
                self.context_gate_channels,
                self.kernel_size,
                dilations,
                self.remat,
                self.convolution,
                self.gated_layers,
            )

        self.loudness_context = stack(self.loudness_dilations)
        self.asr_context = stack(self.asr_dilations)
        self.sine_context = stack(self.sine_dilations)
        on_tpu = self.gated_layers is not None
        self.loudness_upsample = Upsample(self.loudness_factors, on_tpu)
        self.asr_upsample = Upsample(self.asr_factors, on_tpu)
        self.wavenet = WaveNet(
            self.channels,
            self.gate_channels,
            self.skip_channels,
            self.kernel_size,
            self.dilations,
            self.remat,
            self.convolution,
            self.gated_layers,
        )
        self.singers = VoiceTable(self.num_singers, self.embedding_size)

    def embed(self, singer_id) -> jax.Array:
        """[B] int32 -> voices [B, embedding_size]; of size 0 with one singer."""
        return self.singers(singer_id)

    def __call__(
        self, features: Features, voice, noise: Noise, first=None
    ) -> jax.Array:
        """Synthesises audio.

        Args:
          features: f0_hz [B, T], loudness_db [B, T], asr_features [B, A, D].
          voice: [B, embedding_size], from `embed`, or a mixture of such.
          noise: z, excitation [B, N], phase [B].
          first: where loudness and ASR features are of a longer span than f0 and noise,
            the sample of it at which those begin, on the grid of ASR frames: the
            context stacks look far, and are cheap.

        Returns:
          [B, N], N = T * hop_length.
        """
        sine = excitation.sine_excitation(
            features.f0_hz,
            noise.excitation,
            noise.phase,
            sample_rate=self.sample_rate,
            hop_length=self.hop_length,
            num_harmonics=self.num_harmonics,
        )
        loudness = features.loudness_db[..., None] / 120.0 + 1.0
        loudness, content, sine, z, voice = (
            x.astype(self.dtype)
            for x in (loudness, features.asr_features, sine, noise.z[..., None], voice)
        )

        def sung(x, factors):
            if first is None:
                return x
            hop = math.prod(factors)
            return lax.dynamic_slice_in_dim(x, first // hop, z.shape[1] // hop, axis=1)

        loudness = sung(self.loudness_context(loudness), self.loudness_factors)
        content = sung(self.asr_context(content), self.asr_factors)
        condition = [
            self.loudness_upsample(loudness),
            self.asr_upsample(content),
            self.sine_context(sine),
        ]
        audio = self.wavenet(z, jnp.concatenate(condition, axis=-1), voice)
        return audio.astype(jnp.float32)

    def check(self, grid: FrameGeometry):
        """Raises ValueError unless the module can sing on a grid of features."""
        grid.check_upsampling(
            "loudness_factors", self.loudness_factors, grid.hop_length
        )
        grid.check_upsampling("asr_factors", self.asr_factors, grid.asr_hop_length)

    def parts(self) -> dict[str, tuple[float, int]]:
        """Of each part, the rate in Hz and the receptive field in samples of audio."""

        def stack(hop_length, dilations):
            reach = receptive_field(self.kernel_size, dilations)
            return self.sample_rate / hop_length, reach * hop_length

        return {
            "loudness_context": stack(self.hop_length, self.loudness_dilations),
            "asr_context": stack(math.prod(self.asr_factors), self.asr_dilations),
            "sine_context": stack(1, self.sine_dilations),
            "wavenet": stack(1, self.dilations),
        }

    def _reach(self, dilations) -> int:
        """To each side, in the stack's own samples."""
        return receptive_field(self.kernel_size, dilations) // 2

    def context_samples(self) -> int:
        """How far, in samples to each side, an output sample depends on its input."""
        contexts = (
            math.prod(factors) * self._reach(dilations) + _smoothing(factors)
            for dilations, factors in (
                (self.loudness_dilations, self.loudness_factors),
                (self.asr_dilations, self.asr_factors),
            )
        )
        sine = self._reach(self.sine_dilations) + 1
        return max(*contexts, sine) + self._reach(self.dilations)

    def audio_context_samples(self) -> int:
        """The same for noise, f0 and what the context stacks give."""
        upsampled = (_smoothing(self.loudness_factors), _smoothing(self.asr_factors))
        sine = self._reach(self.sine_dilations) + 1
        return max(*upsampled, sine) + self._reach(self.dilations)


def _smoothing(factors: Sequence[int]) -> int:
    """How far upsampled frames are mixed, in samples to each side, a frame included."""
    hop = math.prod(factors)
    rates = [hop // math.prod(factors[: k + 1]) for k in range(len(factors))]
    # A stage of factor s filters s of its own samples to each side.
    return sum(f * r for f, r in zip(factors, rates, strict=True)) + hop


class WaveNetLayer(nn.Module):
    """One layer of the WaveNet: the condition enters the gate (PWG v1)."""

    channels: int
    gate_channels: int
    skip_channels: int
    kernel_size: int
    dilation: int
    convolution: Callable = convolve

    @nn.compact
    def __call__(self, carry, condition, voice):
        """(x [B, N, channels], sum of skips [B, N, skip_channels]) -> the same."""
        x, skips = carry
        told = ConditionProjection(self.gate_channels, name="condition")(
            condition, voice
        )
        gated = GatedLayer(
            self.gate_channels,
            self.kernel_size,
            self.dilation,
            self.convolution,
            name="gate",
        )(x, told)
        skips = skips + Conv(self.skip_channels, name="skip")(gated)
        residual = Conv(self.channels, name="residual")(gated)
        return (residual + x) * RESIDUAL_SCALE, skips


class WaveNet(nn.Module):
    """Non-causal WaveNet on noise; the condition enters every layer (PWG v1)."""

    channels: int
    gate_channels: int
    skip_channels: int
    kernel_size: int
    dilations: Sequence[int]
    remat: Callable | None = None
    convolution: Callable = convolve
    gated_layers: Callable | None = None

    @nn.compact
    def __call__(self, z, condition, voice):
        """[B, N, 1], [B, N, C], [B, E] -> [B, N]."""
        x = Conv(self.channels, name="input")(z)
        skips = jnp.zeros((*x.shape[:-1], self.skip_channels), x.dtype)
        layer = functools.partial(
            WaveNetLayer,
            self.channels,
            self.gate_channels,
            self.skip_channels,
            self.kernel_size,
            convolution=self.convolution,
        )
        at_once = self._at_once if self.gated_layers else None
        layers = DilatedLayers(
            layer, self.dilations, self.remat, at_once, name="layers"
        )
        _, skips = layers((x, skips), condition, voice)
        x = nn.relu(skips * math.sqrt(1.0 / len(self.dilations)))
        x = nn.relu(Conv(self.skip_channels, name="output0")(x))
        return Conv(1, name="output1")(x)[..., 0]

    def _at_once(self, params, carry, condition, voice):
        weights = weights_of(params, voice)
        x, _ = carry
        return x, self.gated_layers(
            x, condition, weights, self.dilations, RESIDUAL_SCALE
        )


class ConditionProjection(Conv):
    """1x1 of the condition with the voice appended to every sample of it.

    The voice does not change along time, so its part is computed once.
    """

    use_bias: bool = False

    @nn.compact
    def __call__(self, condition, voice):
        """[B, N, C], [B, E] -> [B, N, channels]."""
        size = condition.shape[-1]
        kernel = self.normalised_kernel(size + voice.shape[-1])[0]
        kernel = kernel.astype(condition.dtype)
        return condition @ kernel[:size] + (voice @ kernel[size:])[:, None]
