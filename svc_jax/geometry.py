"""Every rate and length of the system, in one object that refuses impossible ones."""

import dataclasses

NOISE_BLOCK = 16_000  # samples per block of noise, a function of (seed, block)
HEARING_RATE = 16_000  # Hz; what CREPE, Wav2Letter and loudness hear, at any rate
ASR_FRAME_RATE = 50  # Hz; Wav2Letter's own


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
        if self.sample_rate < HEARING_RATE:
            raise ValueError(
                f"sample_rate is {self.sample_rate}; it must be at least"
                f" {HEARING_RATE} Hz."
            )
        if self.asr_hop_length * ASR_FRAME_RATE != self.sample_rate:
            raise ValueError(
                f"asr_hop_length {self.asr_hop_length} at {self.sample_rate} Hz must be"
                f" {self.sample_rate / ASR_FRAME_RATE:g}, 20 ms."
            )
        _ = self.heard  # refuses what is no whole number of samples there

    @classmethod
    def at(cls, sample_rate: int, hop_length: int) -> "FrameGeometry":
        """The grids at a sample rate, ASR frames of 20 ms, segments of a second.

        Raises:
          ValueError: as the constructor.
        """
        return cls(sample_rate, hop_length, sample_rate // ASR_FRAME_RATE, sample_rate)

    @property
    def heard(self) -> "FrameGeometry":
        """The same grids at HEARING_RATE, where the features are made.

        Raises:
          ValueError: where a grid is not a whole number of samples there.
        """
        if self.sample_rate == HEARING_RATE:
            return self
        lengths = {}
        for name in ("hop_length", "asr_hop_length", "segment_samples"):
            scaled, rest = divmod(getattr(self, name) * HEARING_RATE, self.sample_rate)
            if rest:
                raise ValueError(
                    f"{name} {getattr(self, name)} at {self.sample_rate} Hz is not a"
                    f" whole number of samples at {HEARING_RATE} Hz."
                )
            lengths[name] = scaled
        return FrameGeometry(HEARING_RATE, **lengths)

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
