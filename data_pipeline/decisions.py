"""What becomes of each recording, once all have been heard."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from data_pipeline import sources, verdicts
from data_pipeline.extraction import Heard
from data_pipeline.listening import Measures
from data_pipeline.sources import Source
from data_pipeline.verdicts import REFUSED, WARNED, Sound, Verdict


@dataclasses.dataclass(frozen=True)
class Decision:
    """A recording with its verdict; where it is used, its source has a split."""

    heard: Heard
    verdict: Verdict

    @property
    def is_used(self) -> bool:
        return self.verdict.outcome != REFUSED

    def to_json(self) -> dict:
        """Plain values, for `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Decision":
        heard, verdict = values["heard"], values["verdict"]
        return cls(
            Heard(
                **{
                    **heard,
                    "source": Source(**heard["source"]),
                    "measures": Measures.from_json(heard["measures"]),
                    "sound": Sound(**heard["sound"]),
                    "spans": tuple(map(tuple, heard["spans"])),
                }
            ),
            Verdict(verdict["outcome"], tuple(verdict["reasons"])),
        )


def decide(
    recordings: Iterable[Heard],
    *,
    valid: float,
    strict: bool,
    known: Mapping[str, str],
) -> list[Decision]:
    """Judges recordings, of which the first of duplicates is used, and splits them.

    Args:
      recordings: all that there are, in any order.
      valid: see sources.assign_splits.
      strict: refuse what would be used with a warning.
      known: sha256 of audio that is in the dataset already -> the recording's name.

    Returns:
      Decisions, sorted by the recordings' names.
    """
    recordings = sorted(recordings, key=lambda heard: heard.source.name)
    levels = _usual_levels_db(recordings)
    first_with, judged = dict(known), []
    for heard in recordings:
        verdict = verdicts.judge(
            heard.measures,
            heard.sound,
            singers_level_db=levels.get(heard.source.singer),
        )
        if strict and verdict.outcome == WARNED:
            verdict = Verdict(REFUSED, verdict.reasons)
        if verdict.outcome != REFUSED:
            name = heard.source.name
            first = first_with.setdefault(heard.measures.sha256, name)
            if first != name:
                verdict = Verdict(REFUSED, (f"duplicate: of {first}",))
        judged.append(Decision(heard, verdict))
    used = [decision.heard.source for decision in judged if decision.is_used]
    split_of = {s.name: s.split for s in sources.assign_splits(used, valid)}

    def with_split(decision: Decision) -> Decision:
        source = decision.heard.source
        split = split_of.get(source.name, source.split)
        source = dataclasses.replace(source, split=split)
        heard = dataclasses.replace(decision.heard, source=source)
        return dataclasses.replace(decision, heard=heard)

    return [with_split(decision) for decision in judged]


def _usual_levels_db(recordings) -> dict[str, float]:
    """Singer -> median level of the recordings that can be heard."""
    levels: dict[str, list[float]] = {}
    for heard in recordings:
        if heard.measures.error is None:
            levels.setdefault(heard.source.singer, []).append(heard.sound.level_db)
    return {singer: float(np.median(own)) for singer, own in levels.items()}
