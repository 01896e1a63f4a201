"""Makes a dataset from recordings, and says what is wrong with them.

  python -m data_pipeline.prepare --input recordings/ --output datasets/choir \\
      --wav2letter wav2letter.safetensors

`recordings/` has a folder per singer: recordings/<singer>/**/*.{wav,flac,ogg,mp3,opus}.
Or it is a table with the columns path, singer and, if you like, split and song. Record
isolated voices: no accompaniment, no choir.

Each recording gets a verdict in OUTPUT/report.tsv; report.html shows them. The output
is in the layout of tensorflow-datasets; `tfds.builder_from_directory` opens it.
Features are kept in a cache beside it: a run that was stopped, or is repeated, makes
only those that are missing.
"""

import dataclasses
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from svc_jax import command_line

CACHE = ".features"  # beside the dataset
MAX_THREADS = 8  # more would wait for each other in Python


def prepare(
    inputs,
    output_dir,
    *,
    geometry=None,
    f0: str = "crepe-tiny",
    f0_hop: int = 160,
    crepe_path=None,
    wav2letter_path=None,
    asr_layer: str = "wide",
    normalize: float | None = None,
    valid: float = 0.05,
    strict: bool = False,
    append: bool = False,
    file_format: str = "tfrecord",
    cache_dir=None,
    runner: str = "DirectRunner",
    beam_options: Sequence[str] = (),
) -> list[str]:
    """Writes a dataset; see the module's first lines.

    Args:
      inputs: a folder or table, several, or a list of sources.Source.
      output_dir: made; must not exist or be empty, unless `append`.
      geometry: of the features; None for FrameGeometry().
      f0, f0_hop, crepe_path, wav2letter_path, asr_layer: see extraction.Recipe.
      normalize: loudness in LUFS that recordings are brought to; None for as they are.
      valid: see sources.assign_splits.
      strict: refuse recordings with a warning.
      append: add singers to a dataset that exists.
      file_format: tfrecord, or array_record for grain.
      cache_dir: of features; None for `.features` beside the output.
      runner, beam_options: see runners.pipeline.

    Returns:
      One line for each recording that was left out.

    Raises:
      UserError: if nothing is usable, the output exists, or there is no such runner.
    """
    graph = _graph()
    from data_pipeline import appending, extraction, runners
    from data_pipeline.progress import bar
    from svc_jax.geometry import FrameGeometry

    pipeline = runners.pipeline(runner, beam_options)
    output = _absolute(output_dir)
    partial = output.with_name(f".{output.name}.partial")
    replaced = output.with_name(f".{output.name}.replaced")
    if replaced.exists() and not output.exists():
        replaced.rename(output)  # a run was stopped between the last two renames
    _check_output(output, output_dir, append)
    cache = _absolute(cache_dir) if cache_dir else output.parent / CACHE

    recordings = find_recordings(inputs)
    recipe = extraction.Recipe(
        geometry or FrameGeometry(),
        f0,
        f0_hop,
        crepe_path and os.path.abspath(crepe_path),
        wav2letter_path and os.path.abspath(wav2letter_path),
        asr_layer,
        normalize,
    )
    extraction.forget_networks()
    extractor, found = extraction.frozen_networks(recipe)
    card = _card(recipe, found, extractor.asr_size)
    existing = appending.read(output, card, recordings, file_format) if append else None

    if partial.exists():
        partial.rmtree()
    partial.mkdir(parents=True)
    if existing:
        appending.link_files(output, partial)
    lengths = existing.shard_lengths if existing else {}
    work = graph.Work(
        recipe=recipe,
        cache=os.fspath(cache),
        folder=os.fspath(partial),
        asr_size=extractor.asr_size,
        file_format=file_format,
        valid=valid,
        strict=strict,
        known_audio=existing.known_audio if existing else (),
        known_singers=existing.known_singers if existing else (),
        num_shards=tuple((split, len(each)) for split, each in lengths.items()),
    )
    progress = bar(os.fspath(partial / graph.PROGRESS), len(recordings))
    with progress, runners.answering():
        graph.run(pipeline, recordings, work)

    table = _finish(partial, output.name, work, card, found, existing)
    _put_in_place(partial, output, replaced)
    return [
        f"{row['recording']}: {row['reasons']}"
        for row in table
        if row["verdict"] == "refused"
    ]


def _finish(partial, name: str, work, card, found, existing):
    """Writes all of a dataset but its records, which are there.

    Args:
      partial: folder of the dataset in the making; removed if nothing is usable.
      name: that it will have.
      work: graph.Work that was done.
      card: the description, still without singers.
      found: networks that made the features.
      existing: appending.Existing that was added to, or None.

    Returns:
      Rows of the report, of the recordings that were prepared now.

    Raises:
      UserError: if nothing is usable.
    """
    from data_pipeline import report, shards
    from svc_jax.errors import UserError

    graph = _graph()
    decisions = graph.read_decisions(partial)
    if not any(decision.is_used for decision in decisions):
        partial.rmtree()
        first = decisions[0]
        raise UserError(
            f"none of {len(decisions)} recordings is usable; the first,"
            f" {first.heard.source.path}, is refused: {first.verdict.reasons[0]}."
        )
    names = graph.singer_names(decisions, work.known_singers)
    known = existing.card.singers if existing else ()
    described = graph.read_singers(partial, names[len(known) :])
    card = dataclasses.replace(card, singers=(*known, *described))
    before = existing.shard_lengths if existing else {}
    lengths = _shard_lengths(decisions, work, before)
    shards.write_info(partial, lengths, work.asr_size, work.file_format)
    for leftover in (graph.DECISIONS, graph.PROGRESS):
        (partial / leftover).unlink(missing_ok=True)
    _save_frozen(partial, found)
    table = report.rows(decisions, work.recipe.geometry.asr_frame_rate)
    full_table = [*(existing.table if existing else ()), *table]
    report.write_table(partial, full_table)
    report.write_page(partial, name, card, full_table)
    card.write(partial)
    return table


def _graph():
    """data_pipeline.graph, imported without what Beam says of libraries it lacks."""
    logging.disable(logging.WARNING)
    try:
        from data_pipeline import graph
    finally:
        logging.disable(logging.NOTSET)
    return graph


def find_recordings(inputs) -> list:
    """sources.Source of everything that may be an input of `prepare`."""
    from data_pipeline import sources

    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    if all(isinstance(each, sources.Source) for each in inputs):
        return list(inputs)
    return sources.find(inputs)


def _absolute(path):
    from etils import epath

    path = os.fspath(path)
    return epath.Path(path if "://" in path else os.path.abspath(path))


def _check_output(output, named, append: bool):
    from svc_jax.errors import UserError

    if append:
        if not output.is_dir():
            raise UserError(f"{named}: no dataset to add to; leave out --append.")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            f"{named}: exists and is not empty; remove it, name another --output, or"
            " add singers to it with --append."
        )


def _card(recipe, found, asr_size: int):
    """The dataset's description, still without singers."""
    from data_pipeline import schema

    pitch, reader = found.get("crepe"), found["wav2letter"]
    return schema.Card(
        singers=(),
        sample_rate=recipe.geometry.sample_rate,
        hop_length=recipe.geometry.hop_length,
        asr_hop_length=recipe.geometry.asr_hop_length,
        f0={
            "network": recipe.f0,
            "sha256": pitch.sha256 if pitch else None,
            "hop_length": recipe.f0_hop,
        },
        asr={
            "network": "wav2letter",
            "sha256": reader.sha256,
            "layer": recipe.asr_layer,
            "size": asr_size,
        },
        normalize_lufs=recipe.normalize_lufs,
    )


def _shard_lengths(decisions, work, before: dict) -> dict[str, list[int]]:
    """Split -> records in each of its files."""
    from data_pipeline import sources

    lengths = {split: list(before.get(split, ())) for split in sources.SPLITS}
    for shard in _graph().plan_shards(decisions, work):
        lengths[shard.split].append(len(shard.references))
    return lengths


def _save_frozen(folder, found):
    """Keeps the networks that made the features with the dataset."""
    from data_pipeline import schema
    from svc_jax import weight_files

    (folder / schema.FROZEN).mkdir()
    for kind, frozen in found.items():
        name = f"{kind}.safetensors"
        target = folder / schema.FROZEN / name
        if "://" not in os.fspath(target):
            weight_files.save_safetensors(target, frozen.params, frozen.config, kind)
            continue
        with tempfile.TemporaryDirectory() as local:
            path = pathlib.Path(local, name)
            weight_files.save_safetensors(path, frozen.params, frozen.config, kind)
            target.write_bytes(path.read_bytes())


def _put_in_place(partial, output, replaced):
    """Renames the finished dataset; one that is replaced goes only then."""
    if replaced.exists():
        replaced.rmtree()
    if output.exists():
        output.rename(replaced)
    partial.rename(output)
    if replaced.exists():
        replaced.rmtree()


def main(_, flags):
    from svc_jax.errors import UserError

    geometry = geometry_of(flags.sample_rate, flags.hop_length)
    if bool(flags.input) == bool(flags.tfds):
        raise UserError(
            "name either recordings with --input, or a dataset of tensorflow-datasets"
            " with --tfds."
        )
    recordings = _chosen(flags)
    if flags.dry_run:
        print_plan(recordings, flags.valid)
        return
    if not flags.output:
        raise UserError("--output must be given; name the folder of the dataset.")
    refused = prepare(
        recordings,
        flags.output,
        geometry=geometry,
        f0=flags.f0,
        f0_hop=flags.f0_hop,
        crepe_path=flags.crepe,
        wav2letter_path=flags.wav2letter,
        asr_layer=flags.asr_layer,
        normalize=flags.normalize,
        valid=flags.valid,
        strict=flags.strict,
        append=flags.append,
        file_format=flags.file_format,
        cache_dir=flags.cache,
        runner=flags.runner,
        beam_options=_beam_options(flags),
    )
    for line in refused:
        print(f"left out: {line}", file=sys.stderr)
    print_summary(flags.output)


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


def _chosen(flags) -> list:
    """The recordings that the flags name."""
    from data_pipeline import corpora, sources

    if flags.tfds:
        cache = flags.cache or os.path.join(os.path.dirname(flags.output or ""), CACHE)
        return corpora.from_tfds(flags.tfds, flags.tfds_dir, cache)
    if flags.corpus:
        return [
            source
            for folder in flags.input
            for source in corpora.find(flags.corpus, folder)
        ]
    return sources.find(flags.input)


def _beam_options(flags) -> list[str]:
    if flags.runner != "DirectRunner":
        return list(flags.beam)
    workers = flags.workers or min(os.cpu_count() or 1, MAX_THREADS)
    return [
        "--direct_running_mode=multi_threading",
        f"--direct_num_workers={workers}",
        *flags.beam,
    ]


def print_plan(recordings, valid: float):
    """Prints what would be prepared, by the headers of the files alone."""
    import soundfile

    from data_pipeline import sources

    seconds: dict[str, float] = {}
    unread = 0
    planned = sources.assign_splits(recordings, valid)
    for source in planned:
        own = seconds.setdefault(source.singer, 0.0)
        try:
            seconds[source.singer] = own + soundfile.info(source.path).duration
        except (OSError, soundfile.LibsndfileError, TypeError):
            unread += 1
    held_out = sum(source.split == "validation" for source in planned)
    print(
        f"{len(planned)} recordings of {len(seconds)} singers,"
        f" {sum(seconds.values()) / 3600:.2f} h; {held_out} for validation,"
        f" {unread} not readable"
    )
    for singer, own in sorted(seconds.items()):
        print(f"  {singer:20s} {own / 60:6.1f} min")


def print_summary(folder):
    """Prints what a dataset holds."""
    from data_pipeline import report, schema

    card = schema.Card.read(folder)
    print(f"{folder}: {len(card.singers)} singers; {report.TABLE} says more")
    print(f"  {report.summary(report.read_table(folder))}")
    for singer in card.singers:
        print(
            f"  {singer.name:20s} {singer.minutes:6.1f} min  mean f0"
            f" {singer.mean_f0_hz:5.0f} Hz ({singer.low_f0_hz:.0f}"
            f" to {singer.high_f0_hz:.0f})"
        )


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_multi_string(
        "input",
        [],
        "Folder with a folder per singer, or table; may be given several times.",
    )
    flags.DEFINE_string("output", None, "Folder of the dataset to make.")
    flags.DEFINE_string(
        "corpus",
        None,
        "--input is this public corpus as downloaded; one of nus48e, ravdess, vctk,"
        " ljspeech, opensinger, vocalset, libritts, m4singer.",
    )
    flags.DEFINE_string(
        "tfds",
        None,
        "Instead of --input: a dataset that tensorflow-datasets has prepared, one of"
        " vctk, ljspeech, libritts, nsynth.",
    )
    flags.DEFINE_string(
        "tfds_dir", None, "Where tensorflow-datasets keeps it; by default its own."
    )
    flags.DEFINE_bool(
        "dry_run", False, "Only list what would be prepared, by the files' headers."
    )
    flags.DEFINE_bool(
        "append", False, "Add singers to the dataset in --output; the others stay."
    )
    flags.DEFINE_bool(
        "strict", False, "Refuse recordings that would be used with a warning."
    )
    flags.DEFINE_float(
        "normalize",
        None,
        "Bring each recording to this loudness in LUFS, as -23; by default its own"
        " level is kept.",
        lower_bound=-70.0,
        upper_bound=0.0,
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
        "Share of each singer's songs kept for validation.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_integer("sample_rate", 16_000, "Of the audio to train on, in Hz.")
    flags.DEFINE_integer(
        "hop_length",
        None,
        "Samples between two frames of pitch and loudness: 64 at 16 kHz is the paper's"
        " and the default there, 160 is for configs/fast.py; else 10 ms.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "file_format",
        "tfrecord",
        ["tfrecord", "array_record"],
        "Of the records; array_record is for config.data.loader=grain.",
    )
    flags.DEFINE_string(
        "cache", None, "Folder that keeps features; by default .features beside."
    )
    flags.DEFINE_integer(
        "workers",
        0,
        f"Threads on this machine; by default one for each core, {MAX_THREADS} at most.",
        lower_bound=0,
    )
    flags.DEFINE_string(
        "runner", "DirectRunner", "Of Apache Beam: DirectRunner is this machine."
    )
    flags.DEFINE_multi_string(
        "beam",
        [],
        "An option for Beam and its runner, as --beam=--region=europe-west1; may be"
        " given several times.",
    )


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
