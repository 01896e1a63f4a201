"""Makes a dataset from recordings.

  python -m data_pipeline.prepare --input recordings/ --output datasets/choir \\
      --wav2letter wav2letter.safetensors

`recordings/` has a folder per singer: recordings/<singer>/**/*.{wav,flac,ogg,mp3}.
Record isolated voices: no accompaniment, no choir. The output is in the layout of
tensorflow-datasets; `tfds.builder_from_directory` opens it.
"""

import dataclasses
import hashlib
import itertools
import pathlib
import shutil
import sys

from svc_jax import command_line


@dataclasses.dataclass(frozen=True)
class Source:
    """A recording to prepare."""

    path: pathlib.Path
    singer: str
    name: str  # singer/relative path, "/" between
    split: str


def find_sources(folder, valid: float) -> list[Source]:
    """Recordings in a folder per singer, each assigned to a split by its name.

    Args:
      folder: DIR/<singer>/**/*.
      valid: share for validation; unless it is 0, at least one of a singer's
        recordings, but never all. Chosen by a hash of the name: adding recordings
        moves few.

    Raises:
      UserError: if there is no folder, no singer, or a singer without audio.
    """
    from svc_jax import audio_files
    from svc_jax.errors import UserError

    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of recordings; check --input.")
    singers = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not singers:
        raise UserError(
            f"{folder}: holds no folders; put each singer's recordings in a folder"
            f" named after the singer, as {folder / 'alto' / 'song.wav'}."
        )
    sources = []
    for singer in singers:
        paths = audio_files.find(singer)
        if not paths:
            endings = " ".join(audio_files.EXTENSIONS)
            raise UserError(
                f"{singer}: holds no audio ({endings}); add some or remove the folder."
            )
        names = {p: p.relative_to(folder).as_posix() for p in paths}
        ranked = sorted(paths, key=lambda p: _rank(names[p]))
        num_valid = max(round(valid * len(paths)), 1) if valid else 0
        held_out = set(ranked[: min(num_valid, len(paths) - 1)])
        sources += [
            Source(p, singer.name, names[p], "validation" if p in held_out else "train")
            for p in paths
        ]
    return sources


def _rank(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def frozen_networks(
    geometry, f0: str, f0_hop: int, crepe_path, wav2letter_path, asr_layer: str
):
    """The extractor and its weights, from where weights come from.

    Args:
      geometry: grids of audio and features.
      f0: crepe-tiny, crepe-full or yin.
      f0_hop: samples between two estimates of f0.
      crepe_path: CREPE's weights; None for where they are usually found.
      wav2letter_path: its weights.
      asr_layer: whose activations are the ASR features.

    Returns:
      (FeatureExtractor, dict of name -> svc_jax.weights.Weights).
    """
    from svc_jax import builders, weights

    found = {"wav2letter": weights.wav2letter(wav2letter_path)}
    capacity = None
    if f0 != "yin":
        capacity = f0.removeprefix("crepe-")
        found["crepe"] = weights.crepe(capacity, crepe_path)
    extractor = builders.extractor(
        geometry, found["wav2letter"].config, asr_layer, capacity, f0_hop
    )
    return extractor, found


def to_records(audio, extracted, geometry, *, singer_id: int, recording: str):
    """Cuts a recording with its features into records of at most 10 s, even in length.

    Args:
      audio: float32 [N], N on every grid.
      extracted: features.Extracted of one recording, without the axis B.
      geometry: of its features.
      singer_id: of its singer.
      recording: its name.

    Yields:
      dicts named as in schema.FEATURES.
    """
    import numpy as np

    from data_pipeline import schema

    total = geometry.num_asr_frames(audio.size)
    most = int(schema.MAX_RECORD_SECONDS * geometry.asr_frame_rate)
    count = -(-total // most)
    ratio = geometry.asr_hop_length // geometry.hop_length
    borders = np.linspace(0, total, count + 1).astype(int)
    for first, last in itertools.pairwise(borders):
        samples = slice(first * geometry.asr_hop_length, last * geometry.asr_hop_length)
        frames = slice(first * ratio, last * ratio)
        yield {
            "audio": audio[samples],
            "f0_hz": extracted.features.f0_hz[frames],
            "f0_confidence": extracted.f0_confidence[frames],
            "loudness_db": extracted.features.loudness_db[frames],
            "asr_features": extracted.features.asr_features[first:last].astype(
                np.float16
            ),
            "asr_stats": extracted.asr_stats,
            "singer_id": singer_id,
            "recording": recording,
            "position": samples.start,
        }


def dataset_writer(folder, asr_size: int):
    """A writer of TFRecords in the layout of tensorflow-datasets, both splits open."""
    import numpy as np
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import sequential_writer

    from data_pipeline import schema

    axes = {"samples": None, "frames": None, "asr_frames": None, "asr_size": asr_size}

    def feature(shape, dtype):
        if dtype == "str":
            return tfds.features.Text()
        return tfds.features.Tensor(
            shape=tuple(axes.get(axis, axis) for axis in shape),
            dtype=np.dtype(dtype),
            # TFRecords know no float16.
            encoding="bytes" if dtype == "float16" else "none",
        )

    features = tfds.features.FeaturesDict(
        {name: feature(*spec) for name, spec in schema.FEATURES.items()}
    )
    identity = tfds.core.DatasetIdentity(
        name=schema.NAME,
        version=tfds.core.Version(schema.VERSION),
        data_dir=str(folder),
        module_name=__name__,
        release_notes=schema.RELEASE_NOTES,
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = sequential_writer.SequentialWriter(info, max_examples_per_shard=256)
    writer.initialize_splits(["train", "validation"])
    return writer


def save_frozen(folder, found):
    """Keeps the networks that made the features with the dataset."""
    from data_pipeline import schema
    from svc_jax import weight_files

    for kind, frozen in found.items():
        path = pathlib.Path(folder) / schema.FROZEN / f"{kind}.safetensors"
        path.parent.mkdir(exist_ok=True)
        weight_files.save_safetensors(path, frozen.params, frozen.config, kind)


@dataclasses.dataclass
class Tally:
    """What came of the recordings.

    Attributes:
      voiced: singer -> list of voiced f0 in Hz, one array a recording.
      minutes: singer -> minutes used.
      refused: Source -> why it was left out.
    """

    voiced: dict
    minutes: dict
    refused: dict


def write_records(sources, extractor, frozen, folder) -> Tally:
    """Extracts the features of recordings and writes them as TFRecords.

    Args:
      sources: list of Source.
      extractor: FeatureExtractor.
      frozen: its FrozenParams.
      folder: of the dataset.

    Returns:
      The Tally; a recording that cannot be read is in it, not in the dataset.
    """
    import numpy as np
    from tqdm import tqdm

    from svc_jax import audio_files
    from svc_jax.errors import UserError

    geometry = extractor.geometry
    names = sorted({source.singer for source in sources})
    tally = Tally({name: [] for name in names}, dict.fromkeys(names, 0.0), {})
    writer = dataset_writer(folder, extractor.asr_size)
    with tqdm(sources, unit="file", disable=None) as bar:
        for source in bar:
            try:
                audio = audio_files.read(source.path, geometry.sample_rate).audio
            except UserError as error:
                tally.refused[source] = str(error)
                continue
            tally.minutes[source.singer] += audio.size / geometry.sample_rate / 60
            length = max(geometry.padded_length(audio.size), geometry.segment_samples)
            audio = np.pad(audio, (0, length - audio.size))
            extracted = extractor.extract_recordings(frozen, [audio])[0]
            f0_hz = extracted.features.f0_hz
            tally.voiced[source.singer].append(f0_hz[f0_hz > 0])
            records = to_records(
                audio,
                extracted,
                geometry,
                singer_id=names.index(source.singer),
                recording=source.name,
            )
            writer.add_examples({source.split: list(records)})
            hours = sum(tally.minutes.values()) / 60
            elapsed = max(bar.format_dict["elapsed"], 1e-3) / 3600
            bar.set_postfix_str(f"{hours / elapsed:.1f} h of audio per hour")
    writer.close_all()
    return tally


def describe_singers(tally: Tally):
    """schema.Singers in the order of their ids.

    Raises:
      UserError: for a singer without a usable recording, or whose pitch is never heard.
    """
    import numpy as np

    from data_pipeline import schema
    from svc_jax.errors import UserError

    singers = []
    for name, voiced in tally.voiced.items():
        if not voiced:
            refused = tally.refused.items()
            why = next(reason for source, reason in refused if source.singer == name)
            raise UserError(f"singer {name!r}: no recording is usable ({why})")
        f0_hz, minutes = np.concatenate(voiced), tally.minutes[name]
        if not f0_hz.size:
            raise UserError(
                f"singer {name!r}: no pitch was heard in {minutes:.1f} minutes; record"
                " a voice alone, without accompaniment."
            )
        low, high = np.percentile(f0_hz, [1, 99])
        mean = f0_hz.mean(dtype=np.float64)
        singers.append(
            schema.Singer(name, float(mean), float(low), float(high), minutes)
        )
    return tuple(singers)


def prepare(
    input_dir,
    output_dir,
    *,
    geometry=None,
    f0: str = "crepe-tiny",
    f0_hop: int = 160,
    crepe_path=None,
    wav2letter_path=None,
    asr_layer: str = "wide",
    valid: float = 0.05,
) -> list[str]:
    """Writes a dataset; see the module's first lines.

    Args:
      input_dir: a folder per singer.
      output_dir: made; must not exist or be empty.
      geometry: grids of audio and features; by default the paper's.
      f0, f0_hop, crepe_path, wav2letter_path, asr_layer: see `frozen_networks`.
      valid: see `find_sources`.

    Returns:
      One line for each recording that was left out.

    Raises:
      UserError: if nothing usable is left of a singer, or the output exists.
    """
    from data_pipeline import schema
    from svc_jax.errors import UserError
    from svc_jax.features import FrozenParams
    from svc_jax.geometry import FrameGeometry

    output = pathlib.Path(output_dir).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            f"{output_dir}: exists and is not empty; remove it or name another"
            " --output."
        )
    sources = find_sources(input_dir, valid)
    extractor, found = frozen_networks(
        geometry or FrameGeometry(), f0, f0_hop, crepe_path, wav2letter_path, asr_layer
    )
    pitch, reader = found.get("crepe"), found["wav2letter"]
    frozen = FrozenParams(pitch and pitch.params, reader.params)

    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tally = write_records(sources, extractor, frozen, partial)
    try:
        singers = describe_singers(tally)
    except UserError:
        shutil.rmtree(partial)
        raise
    card = schema.Card(
        singers=singers,
        sample_rate=extractor.geometry.sample_rate,
        hop_length=extractor.geometry.hop_length,
        asr_hop_length=extractor.geometry.asr_hop_length,
        f0={
            "network": f0,
            "sha256": pitch.sha256 if pitch else None,
            "hop_length": f0_hop,
        },
        asr={
            "network": "wav2letter",
            "sha256": reader.sha256,
            "layer": asr_layer,
            "size": extractor.asr_size,
        },
    )
    save_frozen(partial, found)
    card.write(partial)
    if output.exists():
        output.rmdir()
    partial.rename(output)
    return list(tally.refused.values())


def geometry_of(sample_rate: int, hop_length: int | None):
    """The grids that are asked for; a hop of 10 ms unless told otherwise.

    At 16 kHz it is the paper's, 64 samples.

    Raises:
      UserError: if they do not fit into each other.
    """
    from svc_jax.errors import UserError
    from svc_jax.geometry import FrameGeometry

    paper = FrameGeometry()
    default = (
        paper.hop_length if sample_rate == paper.sample_rate else sample_rate // 100
    )
    try:
        return FrameGeometry.at(sample_rate, hop_length or default)
    except ValueError as error:
        raise UserError(f"--sample_rate, --hop_length: {error}") from error


def main(_, flags):
    refused = prepare(
        flags.input,
        flags.output,
        geometry=geometry_of(flags.sample_rate, flags.hop_length),
        f0=flags.f0,
        f0_hop=flags.f0_hop,
        crepe_path=flags.crepe,
        wav2letter_path=flags.wav2letter,
        asr_layer=flags.asr_layer,
        valid=flags.valid,
    )
    for line in refused:
        print(f"left out: {line}", file=sys.stderr)
    print_summary(flags.output, len(refused))


def print_summary(folder, num_refused: int):
    """Prints what a dataset holds."""
    from data_pipeline import schema

    card = schema.Card.read(folder)
    print(f"{folder}: {len(card.singers)} singers, {num_refused} files left out")
    for singer in card.singers:
        print(
            f"  {singer.name:20s} {singer.minutes:6.1f} min  mean f0"
            f" {singer.mean_f0_hz:5.0f} Hz ({singer.low_f0_hz:.0f}"
            f" to {singer.high_f0_hz:.0f})"
        )


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string(
        "input", None, "Folder with a folder per singer.", required=True
    )
    flags.DEFINE_string("output", None, "Folder of the dataset to make.", required=True)
    flags.DEFINE_integer("sample_rate", 16_000, "Of the audio to train on, in Hz.")
    flags.DEFINE_integer(
        "hop_length",
        None,
        "Samples between two frames of pitch and loudness: 64 at 16 kHz is the paper's"
        " and the default there, 160 is for configs/fast.py; else 10 ms.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "f0", "crepe-tiny", ["crepe-tiny", "crepe-full", "yin"], "What hears the pitch."
    )
    flags.DEFINE_integer(
        "f0_hop",
        160,
        "Samples at 16 kHz between two estimates of pitch; 64 is the exact grid.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "crepe", None, "Weights of CREPE; by default from cache, package or download."
    )
    flags.DEFINE_string(
        "wav2letter",
        None,
        "Weights of Wav2Letter: .safetensors of train_asr, or .h5; else downloaded.",
    )
    flags.DEFINE_enum(
        "asr_layer", "wide", ["hidden", "wide", "logits"], "Whose activations are kept."
    )
    flags.DEFINE_float(
        "valid",
        0.05,
        "Share of recordings kept for validation.",
        lower_bound=0.0,
        upper_bound=1.0,
    )


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
