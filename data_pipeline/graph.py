"""The whole of preparation as one graph of Apache Beam.

    recordings -> hear (features into the cache) -> decide -> write files of records
                                                          \\-> describe singers

Only names travel through the graph: audio and features go by way of the cache, so that
no runner has to hold them, and a run that was killed finds again what was done. What
is decided is written to small files in the dataset's folder, whichever machine that is.
"""

import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
from etils import epath

from data_pipeline import extraction, schema, shards
from data_pipeline.decisions import Decision, decide
from data_pipeline.extraction import Recipe
from data_pipeline.feature_cache import FeatureCache, replacing
from data_pipeline.sources import SPLITS, Source

DECISIONS = "decisions.json"
PROGRESS = "progress.txt"
BATCH = 8  # recordings that a worker gets at once
_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Work:
    """What every worker has to know.

    Attributes:
      recipe: what makes the features.
      cache: folder of the features.
      folder: of the dataset in the making.
      asr_size: D of the ASR features.
      file_format: tfrecord or array_record.
      valid, strict: see decisions.decide.
      known_audio: see `known` of decisions.decide; pairs.
      known_singers: names that have an id already, in its order.
      num_shards: split -> files that are there already; pairs.
    """

    recipe: Recipe
    cache: str
    folder: str
    asr_size: int
    file_format: str = "tfrecord"
    valid: float = 0.05
    strict: bool = False
    known_audio: tuple[tuple[str, str], ...] = ()
    known_singers: tuple[str, ...] = ()
    num_shards: tuple[tuple[str, int], ...] = ()


def run(pipeline: beam.Pipeline, recordings: Sequence[Source], work: Work):
    """Runs the graph to its end.

    Args:
      pipeline: still empty; see runners.pipeline.
      recordings: what to prepare.
      work: how.
    """
    with pipeline:
        decisions = (
            pipeline
            | "recordings" >> beam.Create(list(recordings))
            | "spread" >> beam.Reshuffle()
            | "batch" >> beam.BatchElements(BATCH, BATCH)
            | "hear" >> beam.FlatMap(hear, work)
            | "gather" >> beam.combiners.ToList()
            | "decide" >> beam.Map(decide_all, work)
        )
        _ = (
            decisions
            | "plan files" >> beam.FlatMap(plan_shards, work)
            | "spread files" >> beam.Reshuffle()
            | "write" >> beam.Map(write_shard, work)
        )
        _ = (
            decisions
            | "singers" >> beam.FlatMap(by_singer, work)
            | "spread singers" >> beam.Reshuffle()
            | "describe" >> beam.Map(describe_singer, work)
        )


def hear(recordings: list[Source], work: Work) -> Iterator[extraction.Heard]:
    """Features into the cache, unless they are there."""
    cache = FeatureCache(work.cache)
    with _LOCK:  # threads of a worker load the networks once
        extraction.keep_programs(cache)
        extraction.frozen_networks(work.recipe)
    size = extraction.batch_size()
    for first in range(0, len(recordings), size):
        part = recordings[first : first + size]
        for heard in extraction.hear(part, work.recipe, cache):
            note_progress(work, heard)
            yield heard


def note_progress(work: Work, heard: extraction.Heard):
    """A line for whoever watches: seconds of audio. Runners elsewhere have their own."""
    if "://" not in work.folder:
        path = epath.Path(work.folder) / PROGRESS
        with open(path, "a") as file:
            file.write(f"{heard.measures.seconds:.3f}\n")


def decide_all(recordings: list[extraction.Heard], work: Work) -> list[Decision]:
    """Decides, and writes the decisions down."""
    decisions = decide(
        recordings,
        valid=work.valid,
        strict=work.strict,
        known=dict(work.known_audio),
    )
    with replacing(epath.Path(work.folder) / DECISIONS) as partial:
        partial.write_text(json.dumps([each.to_json() for each in decisions]))
    return decisions


def read_decisions(folder) -> list[Decision]:
    """What `decide_all` wrote."""
    text = (epath.Path(folder) / DECISIONS).read_text()
    return [Decision.from_json(values) for values in json.loads(text)]


def singer_names(decisions: Sequence[Decision], known: Sequence[str]) -> list[str]:
    """Names in the order of their ids: first those who had one, then by alphabet."""
    used = {decision.heard.source.singer for decision in decisions if decision.is_used}
    return [*known, *sorted(used - set(known))]


def plan_shards(decisions: list[Decision], work: Work):
    """Files of records of about 200 MB."""
    names = singer_names(decisions, work.known_singers)
    singer_id = {name: number for number, name in enumerate(names)}
    for split in SPLITS:
        references = [
            shards.Reference(
                decision.heard.key,
                decision.heard.source.name,
                singer_id[decision.heard.source.singer],
                span,
            )
            for decision in decisions
            if decision.is_used and decision.heard.source.split == split
            for span in decision.heard.spans
        ]
        first = dict(work.num_shards).get(split, 0)
        yield from shards.plan(
            references, split, first, work.recipe.geometry, work.asr_size
        )


def write_shard(shard: shards.Shard, work: Work):
    """One file of records and its part of the index."""
    with _LOCK:  # what TFDS imports when it is first used locks threads out for good
        shards.write_shard(
            shard,
            work.folder,
            FeatureCache(work.cache),
            work.recipe.geometry,
            work.asr_size,
            work.file_format,
        )


def by_singer(decisions: list[Decision], work: Work):
    """(singer's name, own decisions) of each whose recordings are used."""
    for name in singer_names(decisions, work.known_singers):
        own = [d for d in decisions if d.is_used and d.heard.source.singer == name]
        if own:
            yield name, own


def describe_singer(named: tuple[str, list[Decision]], work: Work):
    """Writes the schema.Singer of own recordings, by all their voiced frames."""
    name, decisions = named
    cache, geometry = FeatureCache(work.cache), work.recipe.geometry
    ratio = geometry.asr_hop_length // geometry.hop_length
    voiced = []
    for decision in decisions:
        f0_hz = cache.entry(decision.heard.key).read("f0_hz")
        for first, last in decision.heard.spans:
            part = f0_hz[first * ratio : last * ratio]
            voiced.append(part[part > 0])
    f0_hz = np.concatenate(voiced)
    low, high = np.percentile(f0_hz, [1, 99])
    singer = schema.Singer(
        name,
        float(f0_hz.mean(dtype=np.float64)),
        float(low),
        float(high),
        sum(decision.heard.measures.seconds for decision in decisions) / 60,
    )
    path = epath.Path(work.folder) / f"singer-{singer_file(name)}.json"
    with replacing(path) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(singer)))


def singer_file(name: str) -> str:
    """A file name for a singer's, which may be too long or odd for one."""
    from data_pipeline.feature_cache import digest

    return digest(name)[:16]


def read_singers(folder, names: Sequence[str]) -> list[schema.Singer]:
    """What `describe_singer` wrote of each, read and removed."""
    found = []
    for name in names:
        path = epath.Path(folder) / f"singer-{singer_file(name)}.json"
        found.append(schema.Singer(**json.loads(path.read_text())))
        path.unlink()
    return found
