"""How a conversion sounds beside its source, to all who listen: trackers, recogniser."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline import decoding
from svc_jax import measures, pyin
from svc_jax.types import Features

if TYPE_CHECKING:
    from svc_jax.bundles import Model


@dataclasses.dataclass(frozen=True)
class Heard:
    """What is heard in a recording.

    Attributes:
      audio: float32 [N].
      features: by the model's own networks.
      labels: what its recogniser reads, phones or letters by their numbers.
      pyin_hz: [T'] f0 by pYIN, 0 where unvoiced; None if it was not asked.
    """

    audio: np.ndarray
    features: Features
    labels: list[int]
    pyin_hz: np.ndarray | None


def hear(model: "Model", audio, *, by_pyin: bool) -> Heard:
    """Listens to a recording, float32 [N] at the model's sample rate."""
    extractor = model.extractor
    [extracted] = extractor.extract_recordings(model.frozen, [audio])
    scores = extractor.label_scores(model.frozen, audio)
    [labels] = decoding.greedy(scores[None], [len(scores)])
    sample_rate = extractor.geometry.sample_rate
    pyin_hz = pyin.track(audio, sample_rate) if by_pyin else None
    return Heard(audio, extracted.features, labels, pyin_hz)


def shift(own_hz, asked_hz) -> float:
    """The factor between the f0 of a source and what was asked for, [T] each."""
    both = (own_hz > 0) & (asked_hz > 0)
    # The median: what was asked for is free of the source's slips of an octave.
    return float(np.median(asked_hz[both] / own_hz[both])) if both.any() else 1.0


def errors(result: Heard, source: Heard, asked: Features) -> dict[str, float]:
    """How far a conversion is from what it should keep of its source.

    Args:
      result: the conversion.
      source: what was converted.
      asked: what the conversion was sung from, f0 shifted.

    Returns:
      dict of what measures.f0_measures gives, by the model's own tracker; the same as
      pyin_... between the source by pYIN, shifted, and the result by pYIN, where that
      was heard; loudness_correlation; label_error, see measures.
    """
    found = measures.f0_measures(result.features.f0_hz, asked.f0_hz)
    if source.pyin_hz is not None:
        wanted = source.pyin_hz * shift(source.features.f0_hz, asked.f0_hz)
        by_pyin = measures.f0_measures(result.pyin_hz, wanted)
        found |= {f"pyin_{name}": value for name, value in by_pyin.items()}
    found["loudness_correlation"] = measures.correlation(
        result.features.loudness_db, asked.loudness_db
    )
    found["label_error"] = measures.label_error(result.labels, source.labels)
    return found
