"""Discriminators: they hear audio alone, never who sings (method.md, section 2).

Each returns a list of judges, and of each judge every feature map; the last map is its
logits. The first axis of a map is the batch. Layers compute in the `dtype` of the
discriminator; spectra are float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from svc_jax import dsp
from svc_jax.models.convolutions import LEAK, convolve, normalised
from svc_jax.models.layers import Conv, receptive_field


class WaveNetDiscriminator(nn.Module):
    """Scores every sample by ten dilated convolutions (Parallel WaveGAN's).

    Attributes:
      channels: of the layers.
      kernel_size: of every convolution.
      dilations: of the layers, the last of which gives the score.
      dtype: of what the layers compute.
      convolution: one of `convolutions.CONVOLUTIONS`.
      leaky_layers: what computes the layers after the first at once, as
        `convolutions.leaky_layers` does; None: one after the other.
    """

    channels: int = 64
    kernel_size: int = 3
    dilations: Sequence[int] = (1, 1, 2, 3, 4, 5, 6, 7, 8, 1)
    dtype: Any = jnp.float32
    convolution: Callable = convolve
    leaky_layers: Callable | None = None

    @nn.compact
    def __call__(self, audio):
        """[B, N] -> one judge: maps [B, N, channels], logits [B, N, 1]."""
        x = audio[..., None].astype(self.dtype)
        conv = functools.partial(
            Conv, kernel_size=self.kernel_size, convolution=self.convolution
        )
        at_once = self.leaky_layers and not self.is_initializing()
        maps = []
        for index, dilation in enumerate(self.dilations[: 1 if at_once else -1]):
            x = conv(self.channels, dilation=dilation, name=f"layer{index}")(x)
            x = nn.leaky_relu(x, LEAK)
            maps.append(x)
        if at_once:
            maps += self._others(x)
        x = maps[-1]
        logits = conv(1, dilation=self.dilations[-1], name="output")(x)
        return [[*maps, logits]]

    def _others(self, x) -> list:
        """Maps of the layers after the first, by `leaky_layers`."""
        names = [f"layer{index}" for index in range(1, len(self.dilations) - 1)]
        params = [self.variables["params"][name] for name in names]
        taps = jnp.stack([normalised(p["direction"], p["scale"]) for p in params])
        bias = jnp.stack([p["bias"] for p in params])
        return self.leaky_layers(x, taps, bias, self.dilations[1:-1])

    def receptive_field(self) -> int:
        """How many samples a score depends on."""
        return receptive_field(self.kernel_size, self.dilations)


class MultiDiscriminator(nn.Module):
    """One judge for each period of samples, and one for each resolution of spectra.

    Periods (HiFi-GAN, arXiv 2010.05646) hear phase and pulses, spectra (UnivNet,
    arXiv 2106.07889) noise and timbre. Narrower than the published ones: they are to
    train on a CPU.

    Attributes:
      periods: in samples; audio is folded into rows of as many.
      period_channels: of the layers over time, each of kernel 5 and stride 3.
      fft_sizes: of the spectra, in samples; the hop is a quarter.
      spectrum_channels: of the layers over time and frequency, each of kernel 3 x 7 or
        3 x 5 and of stride 4 or 2 along frequency.
    """

    periods: Sequence[int] = (2, 3, 5, 7, 11)
    period_channels: Sequence[int] = (16, 32, 64, 64)
    fft_sizes: Sequence[int] = (2048, 1024, 512)
    spectrum_channels: Sequence[int] = (16, 32, 32)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, audio):
        """[B, N] -> judges: maps [B, ..., channels], logits [B, ..., 1]."""
        periods = [
            PeriodJudge(
                period, self.period_channels, self.dtype, name=f"period{period}"
            )(audio)
            for period in self.periods
        ]
        spectra = [
            SpectrumJudge(
                n_fft, self.spectrum_channels, self.dtype, name=f"spectrum{n_fft}"
            )(audio)
            for n_fft in self.fft_sizes
        ]
        return periods + spectra

    def receptive_field(self) -> int:
        """How many samples the farthest-seeing score depends on."""
        reach = 3  # of the logits
        for _ in self.period_channels:
            reach = 3 * (reach - 1) + 5
        frames = 1 + 2 * (len(self.spectrum_channels) + 1)
        return max(
            *(period * reach for period in self.periods),
            *(n_fft + (frames - 1) * n_fft // 4 for n_fft in self.fft_sizes),
        )


class PeriodJudge(nn.Module):
    """Hears every period-th sample, for each offset alike."""

    period: int
    channels: Sequence[int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, audio):
        """[B, N] -> maps [B, period * rows, channels], logits [B, period * rows, 1]."""
        batch_size, num_samples = audio.shape
        rows = num_samples // self.period
        x = audio[:, : rows * self.period].reshape(batch_size, rows, self.period)
        x = jnp.swapaxes(x, 1, 2).reshape(batch_size * self.period, rows, 1)
        x = x.astype(self.dtype)
        maps = []

        def layer(x, name, channels, kernel_size, stride):
            conv = nn.Conv(
                channels, (kernel_size,), (stride,), dtype=self.dtype, name=name
            )
            return nn.WeightNorm(conv, name=f"{name}_norm")(x)

        for index, channels in enumerate(self.channels):
            x = nn.leaky_relu(layer(x, f"layer{index}", channels, 5, 3), 0.1)
            maps.append(x)
        maps.append(layer(x, "output", 1, 3, 1))
        return [x.reshape(batch_size, -1, x.shape[-1]) for x in maps]


class SpectrumJudge(nn.Module):
    """Sees the log spectrogram."""

    n_fft: int
    channels: Sequence[int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, audio):
        """[B, N] -> maps [B, T, bands, channels], logits [B, T, bands, 1]."""
        spectrum = dsp.spectrogram(audio, self.n_fft, self.n_fft // 4)
        x = (jnp.log(spectrum)[..., None] / 4).astype(self.dtype)
        maps = []

        def layer(x, name, channels, kernel, strides):
            conv = nn.Conv(channels, kernel, strides, dtype=self.dtype, name=name)
            return nn.WeightNorm(conv, name=f"{name}_norm")(x)

        for index, channels in enumerate(self.channels):
            kernel, stride = ((3, 7), 4) if index == 0 else ((3, 5), 2)
            x = layer(x, f"layer{index}", channels, kernel, (1, stride))
            x = nn.leaky_relu(x, 0.1)
            maps.append(x)
        maps.append(layer(x, "output", 1, (3, 3), (1, 1)))
        return maps
