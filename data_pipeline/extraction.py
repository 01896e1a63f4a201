"""One recording -> its features in the cache, its measures and the parts to keep."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np

from data_pipeline import listening, schema, segments, verdicts
from data_pipeline.feature_cache import FeatureCache, digest, file_digest
from data_pipeline.listening import Measures
from data_pipeline.sources import Source
from data_pipeline.verdicts import Sound
from svc_jax.geometry import FrameGeometry

ACCELERATED_BATCH = 8  # recordings at once where there is more than a CPU
_VERSION = 2  # of what is kept; raise it when a change here alters an entry


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that features depend on but the audio; small, so that it can travel.

    Attributes:
      geometry: of the features.
      f0: crepe-tiny, crepe-full or yin.
      f0_hop: samples between two estimates of f0.
      crepe_path: CREPE's weights; None for where they are usually found.
      wav2letter_path: its weights.
      asr_layer: whose activations are the ASR features.
      normalize_lufs: loudness that recordings are brought to; None for as they are.
    """

    geometry: FrameGeometry = dataclasses.field(default_factory=FrameGeometry)
    f0: str = "crepe-tiny"
    f0_hop: int = 160
    crepe_path: str | os.PathLike | None = None
    wav2letter_path: str | os.PathLike | None = None
    asr_layer: str = "wide"
    normalize_lufs: float | None = None


@dataclasses.dataclass(frozen=True)
class Heard:
    """A recording whose features are in the cache.

    Attributes:
      source: the recording.
      key: of its entry in the cache.
      measures: of its file.
      sound: of what is in it.
      num_samples: of its audio in the cache.
      spans: ASR frames [first, last) of its records.
    """

    source: Source
    key: str
    measures: Measures
    sound: Sound
    num_samples: int
    spans: tuple[tuple[int, int], ...]


@functools.cache
def frozen_networks(recipe: Recipe):
    """The extractor and its weights, from where weights come from.

    Returns:
      (FeatureExtractor, dict of name -> svc_jax.weights.Weights).
    """
    from svc_jax import builders, weights

    found = {"wav2letter": weights.wav2letter(recipe.wav2letter_path)}
    capacity = None
    if recipe.f0 != "yin":
        capacity = recipe.f0.removeprefix("crepe-")
        found["crepe"] = weights.crepe(capacity, recipe.crepe_path)
    extractor = builders.extractor(
        recipe.geometry,
        found["wav2letter"].config,
        recipe.asr_layer,
        capacity,
        recipe.f0_hop,
    )
    return extractor, found


def keep_programs(cache: FeatureCache):
    """Keeps what JAX compiles with the features, unless it has a place already."""
    import jax

    if (
        "://" not in os.fspath(cache.folder)
        and not jax.config.jax_compilation_cache_dir
    ):
        folder = os.fspath(cache.folder / "programs")
        jax.config.update("jax_compilation_cache_dir", folder)


@functools.cache
def _ready(recipe: Recipe):
    """(extractor, its FrozenParams on the device, a digest of both)."""
    import jax

    from svc_jax.features import FrozenParams

    extractor, found = frozen_networks(recipe)
    pitch = found.get("crepe")
    params = FrozenParams(pitch and pitch.params, found["wav2letter"].params)
    facts = {
        "version": _VERSION,
        "geometry": dataclasses.asdict(recipe.geometry),
        "f0": recipe.f0,
        "f0_hop": recipe.f0_hop,
        "asr_layer": recipe.asr_layer,
        "normalize_lufs": recipe.normalize_lufs,
        "weights": {name: frozen.sha256 for name, frozen in found.items()},
    }
    return extractor, jax.device_put(params), digest(facts)


def forget_networks():
    """Lets a file of weights be read anew, for it may have changed."""
    frozen_networks.cache_clear()
    _ready.cache_clear()


def batch_size() -> int:
    """Recordings whose features are made at once.

    One on a CPU, which is as fast then, and where so a recording's features never
    depend on those beside it.
    """
    import jax

    return 1 if jax.default_backend() == "cpu" else ACCELERATED_BATCH


def hear(recordings: Sequence[Source], recipe: Recipe, cache: FeatureCache):
    """Makes the entries of recordings in the cache, of those that have none.

    Returns:
      list of Heard.
    """
    extractor, params, made_by = _ready(recipe)
    found: list[Heard | None] = [None] * len(recordings)
    keys, fresh = {}, {}
    with contextlib.ExitStack() as stack:
        for number, source in enumerate(recordings):
            try:
                keys[number] = digest(file_digest(source.path), made_by)
            except OSError as error:
                said = error.strerror or "cannot be read"
                measures = Measures(error=("missing", said.lower()))
                found[number] = Heard(source, "", measures, Sound(), 0, ())
                continue
            if cache.entry(keys[number]).summary() is None:
                fresh[number] = _listen(source, recipe, stack)
        features = _short_features(extractor, params, fresh)
        for number, (measures, audio, num_samples) in fresh.items():
            entry = cache.entry(keys[number])
            sound, spans = Sound(), []
            if measures.error is None:
                own = features.get(number)
                sound, spans = _write_arrays(
                    entry, extractor, params, audio, num_samples, own
                )
            entry.finish(
                {
                    "measures": dataclasses.asdict(measures),
                    "sound": dataclasses.asdict(sound),
                    "num_samples": num_samples,
                    "spans": spans,
                }
            )
    for number, key in keys.items():
        summary = cache.entry(key).summary()
        found[number] = _heard(recordings[number], key, summary)
    return found


def _heard(source: Source, key: str, summary: dict) -> Heard:
    """An entry's summary as Heard."""
    return Heard(
        source,
        key,
        Measures.from_json(summary["measures"]),
        Sound(**summary["sound"]),
        summary["num_samples"],
        tuple((first, last) for first, last in summary["spans"]),
    )


def _listen(source: Source, recipe: Recipe, stack: contextlib.ExitStack):
    """(Measures; Audio, closed by the stack; samples on every grid)."""
    geometry = recipe.geometry
    measures, audio = listening.listen(source.path, geometry.sample_rate)
    stack.enter_context(audio)
    if measures.error is not None:
        return measures, audio, 0
    if recipe.normalize_lufs is not None:
        _normalize(audio, geometry.sample_rate, recipe.normalize_lufs)
    num_samples = max(
        geometry.padded_length(audio.num_samples), geometry.segment_samples
    )
    return measures, audio, num_samples


def _short_features(extractor, params, fresh: dict) -> dict:
    """Features of the recordings that are short enough to be heard as a whole."""
    most = listening.LONG_SECONDS * extractor.geometry.sample_rate
    short = {
        number: audio.read(0, num_samples)
        for number, (measures, audio, num_samples) in fresh.items()
        if measures.error is None and num_samples <= most
    }
    extracted = extractor.extract_recordings(params, list(short.values()), batch_size())
    return dict(zip(short, extracted, strict=True))


def _normalize(audio: listening.Audio, sample_rate: int, lufs: float):
    loudness = listening.loudness_lufs(audio, sample_rate)
    if np.isfinite(loudness):
        audio.gain = 10 ** ((lufs - loudness) / 20)


def _write_arrays(entry, extractor, params, audio, num_samples: int, extracted):
    """Writes audio and features, which are made block by block where there are none.

    Returns:
      (Sound, spans of the records).
    """
    from svc_jax.long_recordings import LongRecording

    geometry = extractor.geometry
    num_asr_frames = geometry.num_asr_frames(num_samples)
    if extracted is None:
        recording = LongRecording(extractor, params, audio.read, num_samples)
        extracted = recording.extract()
        content = recording.content()
    else:
        content = [extracted.features.asr_features]
    entry.write(
        "audio", [num_samples], np.float32, audio.blocks(listening.BLOCK, num_samples)
    )
    entry.write(
        "asr_features", [num_asr_frames, extractor.asr_size], np.float16, content
    )
    for name, array in {
        "f0_hz": extracted.features.f0_hz,
        "f0_confidence": extracted.f0_confidence,
        "loudness_db": extracted.features.loudness_db,
        "asr_stats": extracted.asr_stats,
    }.items():
        entry.write(name, array.shape, np.float32, [array])

    level_db = listening.levels_db(audio, geometry.asr_hop_length, num_asr_frames)
    f0_hz = extracted.features.f0_hz
    harmonicity = verdicts.harmonicity(
        audio.read, f0_hz, geometry.sample_rate, geometry.hop_length
    )
    # Padding is no part of the recording.
    real = max(1, -(-audio.num_samples // geometry.asr_hop_length))
    ratio = geometry.asr_hop_length // geometry.hop_length
    heard = verdicts.sound(
        level_db[:real],
        f0_hz[: real * ratio],
        extracted.f0_confidence[: real * ratio],
        harmonicity,
    )
    spans = segments.spans(
        level_db,
        frame_rate=geometry.asr_frame_rate,
        shortest=geometry.segment_asr_frames,
        longest=int(schema.MAX_RECORD_SECONDS * geometry.asr_frame_rate),
    )
    return heard, spans


def read_record(entry, geometry: FrameGeometry, span: tuple[int, int]) -> dict:
    """The arrays of a record: dict of name -> array, named as in schema.FEATURES."""
    first, last = span
    ratio = geometry.asr_hop_length // geometry.hop_length
    hop_length = geometry.asr_hop_length
    return {
        "audio": entry.read("audio", first * hop_length, last * hop_length),
        "f0_hz": entry.read("f0_hz", first * ratio, last * ratio),
        "f0_confidence": entry.read("f0_confidence", first * ratio, last * ratio),
        "loudness_db": entry.read("loudness_db", first * ratio, last * ratio),
        "asr_features": entry.read("asr_features", first, last),
        "asr_stats": entry.read("asr_stats"),
    }
