"""The doctor's judgement: whether a recording is used, and what is wrong with it."""

import dataclasses

import numpy as np

from data_pipeline import segments
from data_pipeline.listening import Measures

USED, WARNED, REFUSED = "used", "warned", "refused"

# Refused beyond these.
MIN_SECONDS = 0.1
MIN_LEVEL_DB = -70.0  # of the loud parts, below full scale
MIN_VOICED = 0.01  # share of what sounds

# Warned beyond these. Recordings of RAVDESS and of the embedded corpus stay within, and
# all but the noisiest of LibriSpeech; tests/data_pipeline/verdicts_test.py holds them
# to it.
SHORT_SECONDS = 0.5
MAX_CLIPPED = 1e-4  # share of samples
MAX_DC_OFFSET = 0.01
MOSTLY_UNVOICED = 0.2  # share of what sounds
LEVELS_DB = (-50.0, -6.0)  # of the loud parts, below full scale
MAX_LEVEL_DIFFERENCE_DB = 20.0  # from the median of the singer's recordings
F0_RANGE_HZ = (55.0, 1500.0)
MAX_OUT_OF_RANGE = 0.05  # share of voiced frames
MIN_CONFIDENCE = 0.6  # mean of the pitch tracker's, where voiced
MIN_HARMONICITY = 0.3


@dataclasses.dataclass(frozen=True)
class Sound:
    """What is known of a recording from its levels and its pitch.

    Attributes:
      level_db: power mean of what sounds, below full scale.
      noise_db: the level that is exceeded for 95 % of the time.
      sounding: share of frames that are not silent.
      voiced: share of what sounds.
      confidence: mean of the pitch tracker's, where voiced.
      harmonicity: how much of the voiced power is in harmonics of f0; see `harmonicity`.
      out_of_range: share of voiced frames whose f0 is outside F0_RANGE_HZ.
      f0_hz: mean, where voiced.
    """

    level_db: float = -100.0
    noise_db: float = -100.0
    sounding: float = 0.0
    voiced: float = 0.0
    confidence: float = 0.0
    harmonicity: float = 0.0
    out_of_range: float = 0.0
    f0_hz: float = 0.0

    @property
    def snr_db(self) -> float:
        """Level of what sounds above the quietest moments."""
        return self.level_db - self.noise_db


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What becomes of a recording: used, warned (and used) or refused, and why."""

    outcome: str
    reasons: tuple[str, ...] = ()


def sound(level_db, f0_hz, confidence, harmonicity: float) -> Sound:
    """Sums up a recording.

    Args:
      level_db: [A] of frames of asr_hop_length.
      f0_hz: [T] in Hz, 0 where unvoiced; T a multiple of A.
      confidence: [T].
      harmonicity: see `harmonicity`.
    """
    audible = segments.sounding(level_db)
    if not audible.any():
        return Sound()
    power = 10 ** (level_db / 10)
    frames = np.repeat(audible, len(f0_hz) // len(level_db))
    voiced = f0_hz > 0
    heard = f0_hz[voiced].astype(np.float64)
    low, high = F0_RANGE_HZ
    outside = (heard < low) | (heard > high)
    return Sound(
        level_db=float(10 * np.log10(power[audible].mean())),
        noise_db=float(np.percentile(level_db, 5)),
        sounding=float(audible.mean()),
        voiced=float((voiced & frames).sum() / frames.sum()),
        confidence=float(confidence[voiced].mean()) if heard.size else 0.0,
        harmonicity=harmonicity,
        out_of_range=float(outside.mean()) if heard.size else 0.0,
        f0_hz=float(heard.mean()) if heard.size else 0.0,
    )


def harmonicity(read, f0_hz, sample_rate: int, hop_length: int) -> float:
    """How much of a voice's power below 3 kHz stands at multiples of its f0.

    Near 1 for one steady voice, lower where it moves or is breathy; about one half for
    two voices as loud as each other; near 0 for chords and noise. The share that chance
    would give is taken off.

    Args:
      read: (first, last) -> samples.
      f0_hz: [T] in Hz, 0 where unvoiced.
      sample_rate: in Hz.
      hop_length: samples per frame of f0.

    Returns:
      What three quarters of at most 300 voiced frames exceed; 0 without any.
    """
    voiced = np.flatnonzero(f0_hz > 0)
    if not voiced.size:
        return 0.0
    chosen = voiced[np.linspace(0, len(voiced) - 1, min(300, len(voiced))).astype(int)]
    size = round(0.1 * sample_rate)
    window = np.hanning(size)
    spacing = sample_rate / size
    bins = np.arange(spacing, 3000.0, spacing)
    values = []
    for frame in chosen:
        first = max(0, frame * hop_length - size // 2)
        samples = read(first, first + size)
        power = np.square(np.abs(np.fft.rfft(samples * window)))[1 : len(bins) + 1]
        order = np.maximum(1, np.round(bins / f0_hz[frame]))
        # The window's main lobe, and pitch that moves while it lasts.
        near = np.abs(bins - order * f0_hz[frame]) <= 2 * spacing + 0.015 * bins
        share, chance = power[near].sum() / max(power.sum(), 1e-30), near.mean()
        values.append((share - chance) / max(1 - chance, 1e-3))
    return float(max(0.0, np.percentile(values, 25)))


def is_accompanied(confidence: float, harmonicity: float) -> bool:
    """Whether more than one voice seems to sound; the arguments as in Sound."""
    return confidence < MIN_CONFIDENCE or harmonicity < MIN_HARMONICITY


def judge(
    measures: Measures, heard: Sound, *, singers_level_db: float | None = None
) -> Verdict:
    """The verdict on one recording.

    Args:
      measures: of its file.
      heard: of what is in it.
      singers_level_db: median level of the singer's recordings.
    """
    if measures.error:
        return Verdict(REFUSED, (": ".join(measures.error),))
    if measures.seconds < MIN_SECONDS:
        return Verdict(REFUSED, (f"too short: {measures.seconds:.2f} s",))
    if heard.level_db < MIN_LEVEL_DB:
        return Verdict(REFUSED, (f"silent: nothing above {MIN_LEVEL_DB:.0f} dB",))
    if heard.voiced < MIN_VOICED:
        share = f"{100 * heard.voiced:.1f} % of what sounds has a pitch"
        return Verdict(REFUSED, (f"unvoiced: {share}",))
    reasons = list(_warnings(measures, heard, singers_level_db))
    return Verdict(WARNED if reasons else USED, tuple(reasons))


def _warnings(measures: Measures, heard: Sound, singers_level_db: float | None):
    """Yields what is wrong with a recording that is used all the same."""
    if measures.is_truncated:
        yield f"truncated: ends after {measures.seconds:.1f} s, before it should"
    if measures.seconds < SHORT_SECONDS:
        yield f"short: {measures.seconds:.2f} s"
    if measures.clipped > MAX_CLIPPED:
        yield f"clipped: {100 * measures.clipped:.2f} % of the samples"
    if abs(measures.dc_offset) > MAX_DC_OFFSET:
        yield f"DC offset: {measures.dc_offset:+.3f}"
    quietest, loudest = LEVELS_DB
    if not quietest <= heard.level_db <= loudest:
        yield f"level: {heard.level_db:.0f} dB"
    elif (
        singers_level_db is not None
        and abs(heard.level_db - singers_level_db) > MAX_LEVEL_DIFFERENCE_DB
    ):
        yield (
            f"level: {heard.level_db:.0f} dB, the singer's usual one is"
            f" {singers_level_db:.0f} dB"
        )
    if heard.voiced < MOSTLY_UNVOICED:
        yield f"mostly unvoiced: {100 * heard.voiced:.0f} % of what sounds has a pitch"
    if is_accompanied(heard.confidence, heard.harmonicity):
        yield (
            "polyphonic or accompanied: confidence"
            f" {heard.confidence:.2f}, harmonicity {heard.harmonicity:.2f}"
        )
    if heard.out_of_range > MAX_OUT_OF_RANGE:
        low, high = F0_RANGE_HZ
        yield (
            f"out of f0 range: {100 * heard.out_of_range:.0f} % of the pitch is outside"
            f" {low:.0f} to {high:.0f} Hz"
        )
