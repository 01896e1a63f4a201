"""Every rate and length of the system, in one object that refuses impossible ones."""

import dataclasses

NOISE_BLOCK = 16_000  # samples per block of noise, a function of (seed, block)


@dataclasses.dataclass(frozen=True)
class FrameGeometry:
    """The grids of audio, f0 and loudness, and ASR features (method.md, section 1).

    Attributes:
      sample_rate: in Hz.
      hop_length: samples per frame of f0 and loudness.
      asr_hop_length: samples per frame of ASR features.
      segment_samples: length of a training segment, in samples.

    Raises:
      ValueError: where the grids do not fit into each other.
    """

    sample_rate: int = 16_000
    hop_length: int = 64
    asr_hop_length: int = 320
    segment_samples: int = 16_000

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)}; it must be positive."
                )
        if self.asr_hop_length % self.hop_length:
            raise ValueError(
                f"asr_hop_length {self.asr_hop_length} must be a multiple of"
                f" hop_length {self.hop_length}."
            )
        if self.segment_samples % self.asr_hop_length:
            raise ValueError(
                f"segment_samples {self.segment_samples} must be a multiple of"
                f" asr_hop_length {self.asr_hop_length}."
            )

    @property
    def frame_rate(self) -> float:
        """Frames of f0 and loudness per second."""
        return self.sample_rate / self.hop_length

    @property
    def asr_frame_rate(self) -> float:
        """Frames of ASR features per second."""
        return self.sample_rate / self.asr_hop_length

    @property
    def segment_frames(self) -> int:
        return self.segment_samples // self.hop_length

    @property
    def segment_asr_frames(self) -> int:
        return self.segment_samples // self.asr_hop_length

    def padded_length(self, num_samples: int) -> int:
        """The next length on every grid; at least one ASR frame."""
        return max(1, -(-num_samples // self.asr_hop_length)) * self.asr_hop_length

    def num_frames(self, num_samples: int) -> int:
        """Frames of f0 and loudness in a padded length."""
        return num_samples // self.hop_length

    def num_asr_frames(self, num_samples: int) -> int:
        """Frames of ASR features in a padded length."""
        return num_samples // self.asr_hop_length

    def check_upsampling(self, name: str, factors: tuple[int, ...], hop_length: int):
        """Raises ValueError unless the factors take `hop_length` to the audio rate."""
        product = 1
        for factor in factors:
            product *= factor
        if product != hop_length:
            raise ValueError(
                f"{name} {factors} give {product}; the hop is {hop_length} samples."
            )
