"""The containers that travel between modules.

Letters in shapes: B examples, N samples, T frames of hop_length, A frames of
asr_hop_length, D the size of an ASR feature.
"""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Features:
    """What the generator is told of a recording: nothing of who sings.

    Attributes:
      f0_hz: [B, T] in Hz, 0 where unvoiced.
      loudness_db: [B, T] in dB.
      asr_features: [B, A, D].
    """

    f0_hz: jax.Array
    loudness_db: jax.Array
    asr_features: jax.Array


@flax.struct.dataclass
class Noise:
    """The random inputs of a generator.

    Attributes:
      z: [B, N], uniform in [0, 1).
      excitation: [B, N], standard normal.
      phase: [B], where the sine starts, in turns.
    """

    z: jax.Array
    excitation: jax.Array
    phase: jax.Array


@flax.struct.dataclass
class Batch:
    """Training segments with their features.

    Attributes:
      audio: [B, N] in [-1, 1].
      f0_hz: [B, T] in Hz, 0 where unvoiced.
      loudness_db: [B, T] in dB.
      asr_features: [B, A, D].
      asr_stats: [B, 3, 13, 2], mean and deviation of MFCC, delta and delta-delta over
        the recording that the segment was cut from.
      singer_id: [B] int32.
    """

    audio: jax.Array
    f0_hz: jax.Array
    loudness_db: jax.Array
    asr_features: jax.Array
    asr_stats: jax.Array
    singer_id: jax.Array

    @property
    def features(self) -> Features:
        return Features(self.f0_hz, self.loudness_db, self.asr_features)


@flax.struct.dataclass
class NetworkState:
    """A trained network and its optimiser."""

    params: Any
    opt_state: Any


@flax.struct.dataclass
class Guard:
    """What was not finite so far.

    Attributes:
      skipped: int32 [G], skipped updates in which each of steps.GUARDED was not finite.
      in_a_row: int32, updates skipped since the last that was not.
      rollbacks: int32, how often the run went back to a checkpoint.
    """

    skipped: jax.Array
    in_a_row: jax.Array
    rollbacks: jax.Array


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint holds.

    Attributes:
      step: int32, updates done or skipped.
      generator: parameters and optimiser of G.
      discriminator: parameters and optimiser of D.
      ema_params: running mean of G's parameters; what is evaluated and exported.
      guard: what was not finite so far.
    """

    step: jax.Array
    generator: NetworkState
    discriminator: NetworkState
    ema_params: Any
    guard: Guard


@flax.struct.dataclass
class AsrState:
    """All that a checkpoint of the recogniser holds.

    Attributes:
      step: int32, updates done.
      network: parameters and optimiser.
      batch_stats: means and variances of its norms.
      prior: [C], how often each label is expected, over the last batches.
    """

    step: jax.Array
    network: NetworkState
    batch_stats: Any
    prior: jax.Array
