"""Measures a model's conversions of a folder of recordings.

  python -m svc_jax.evaluate --model runs/choir --sources held_out/ --output report/
  python -m svc_jax.evaluate --compare runs/choir runs/other --sources held_out/ \\
      --output comparison/

Each source is sung by each singer. VDE, FFE and the f0 error are those of the result
against the f0 it was asked for, heard by the model's own pitch tracker; in the report
also heard by pYIN, which does not condition the generator. Beside them stand the
correlation of loudness, what the model's recogniser reads of the words, and whether a
classifier of real recordings tells the singer. With --reconstruct, also the spectral
distance and the mel-cepstral distortion.

Results: OUTPUT/report.json, report.md, report.html with sounds and spectrograms, and
OUTPUT/<singer>/*.wav; of two models in OUTPUT/<model>/, with OUTPUT/comparison.*.
"""

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from svc_jax import command_line

PRINTED = {  # of a summary, with the heading and the form they are printed in
    "vde": ("VDE", "{:.1%}"),
    "ffe": ("FFE", "{:.1%}"),
    "f0_cents": ("f0 cents", "{:.0f}"),
    "loudness_correlation": ("loudness", "{:.3f}"),
    "spectral": ("spectral", "{:.3f}"),
    "mcd_db": ("MCD dB", "{:.2f}"),
}


@dataclasses.dataclass(frozen=True)
class Judges:
    """Who listens beside the model's own networks.

    Attributes:
      by_pyin: measure f0 by pYIN too.
      identifier: identification.Identifier, or None.
      corpora: patterns of singers' names, see Identifier.tell.
    """

    by_pyin: bool = False
    identifier: Any = None
    corpora: Sequence[str] = ()


def evaluate(
    model,
    pairs,
    output,
    transpose: str = "mean",
    *,
    reconstruct: bool = False,
    judges: Judges = Judges(),
) -> list[dict]:
    """The rows of `conversions`, whose arguments it has."""
    found = conversions(
        model, pairs, output, transpose, reconstruct=reconstruct, judges=judges
    )
    return [row for row, _ in found]


def conversions(
    model, pairs, output, transpose: str, *, reconstruct: bool, judges: Judges
) -> Iterator[tuple[dict, dict]]:
    """Sings sources in voices and measures the results.

    Args:
      model: bundles.Model.
      pairs: of a recording's path and a singer's name.
      output: folder; gets <singer>/<source>.wav, with the folders of the sources.
      transpose: see synthesis.transposition.
      reconstruct: each singer is the source's own, so that the source is the truth.
      judges: who listens.

    Yields:
      (dict of source, singer, what hearing.errors and Identifier.tell give and, for a
      reconstruction, spectral and mcd_db; None for what is not defined, as f0_cents
      where source and result are nowhere voiced together.
      dict of evaluation_report.Sound: source and result).

    Raises:
      UserError: for a bad recording, or two whose results would have one name.
    """
    import numpy as np
    from tqdm import tqdm

    from svc_jax import audio_files, evaluation_report, hearing, measures, synthesis

    geometry = model.extractor.geometry
    sample_rate = geometry.sample_rate
    names = result_names([source for source, _ in pairs])
    read = None
    for source, singer in tqdm(pairs, unit="song", disable=None):
        if source != read:  # the next singer's source is mostly the same
            truth, read = audio_files.read(source, sample_rate).audio, source
            own = hearing.hear(model, truth, by_pyin=judges.by_pyin)
        audio, asked = synthesis.convert(
            model, truth, {singer: 1.0}, transpose=transpose, heard=own.features
        )
        path = pathlib.Path(output) / singer / names[source]
        audio_files.write(path, np.clip(audio, -1, 1), sample_rate)
        sung = hearing.hear(model, audio, by_pyin=judges.by_pyin)
        measured = hearing.errors(sung, own, asked)
        if judges.identifier is not None:
            measured |= judges.identifier.tell(
                audio, sample_rate, singer, judges.corpora
            )
        if reconstruct:
            measured["spectral"] = measures.spectral_distance(audio, truth)
            measured["mcd_db"] = measures.mel_cepstral_distortion(
                audio, truth, sample_rate
            )
        sounds = {
            "source": evaluation_report.Sound(truth, geometry, own.features.f0_hz),
            "result": evaluation_report.Sound(
                audio, geometry, sung.features.f0_hz, asked.f0_hz
            ),
        }
        yield {"source": str(source), "singer": singer, **without_nan(measured)}, sounds


def without_nan(values: dict[str, float]) -> dict[str, float | None]:
    """The same with None for NaN, which JSON does not know."""
    return {k: None if math.isnan(value) else value for k, value in values.items()}


def real_time_factor(model, audio, singer: str) -> float:
    """Seconds of work for a second of audio, features included, compilation not.

    Args:
      model: bundles.Model.
      audio: float32 [N] at its sample rate.
      singer: whose voice.
    """
    sample_rate = model.extractor.geometry.sample_rate
    model.convert(audio, sample_rate, singer)  # compiles
    started = time.perf_counter()
    model.convert(audio, sample_rate, singer)
    return (time.perf_counter() - started) * sample_rate / audio.size


def speed(model, source, singer: str) -> dict:
    """How fast a recording is converted, and on what."""
    import jax

    from svc_jax import audio_files

    sample_rate = model.extractor.geometry.sample_rate
    audio = audio_files.read(source, sample_rate).audio
    return {
        "real_time_factor": real_time_factor(model, audio, singer),
        "seconds": audio.size / sample_rate,
        "device": jax.devices()[0].device_kind,
    }


def own_singers(sources, folder) -> list[tuple]:
    """Each source with the singer it is from, the folder it lies in below `folder`."""
    return [
        (source, pathlib.Path(source).relative_to(folder).parts[0])
        for source in sources
    ]


def result_names(sources) -> dict:
    """For each source the name of its results: as below the folder of all, but .wav.

    Raises:
      UserError: if two would have one name.
    """
    from svc_jax.errors import UserError

    folder = os.path.commonpath([pathlib.Path(source).parent for source in sources])
    names = {}
    for source in dict.fromkeys(sources):
        name = pathlib.Path(source).relative_to(folder).with_suffix(".wav")
        if name in names.values():
            raise UserError(f"{source}: its results would be those of another {name}.")
        names[source] = name
    return names


def summarize(rows: list[dict]) -> dict[str, dict[str, float | None]]:
    """Means over conversions, for each singer and for all; None where there is none."""

    def mean(values):
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    groups = {"all": rows}
    for row in rows:
        groups.setdefault(row["singer"], []).append(row)
    return {
        name: {
            key: mean(row[key] for row in group)
            for key in group[0]
            if key not in ("source", "singer")
        }
        for name, group in groups.items()
    }


def print_summary(summary):
    """Prints a table of the summary, a line for each singer."""
    keys = [key for key in PRINTED if key in summary["all"]]
    print(f"{'singer':20s}" + "".join(f" {PRINTED[key][0]:>9s}" for key in keys))
    for name, values in summary.items():
        cells = (
            "none" if values[key] is None else PRINTED[key][1].format(values[key])
            for key in keys
        )
        print(f"{name:20s}" + "".join(f" {cell:>9s}" for cell in cells))


def judged(flags, name: str, output: pathlib.Path) -> tuple[dict, dict]:
    """Evaluates one model as the flags say.

    Args:
      flags: of the command line.
      name: of the model's folder.
      output: folder of its report and audio.

    Returns:
      (its report; the sounds of some conversions by their names).

    Raises:
      UserError: before any work if a wish cannot be fulfilled.
    """
    import numpy as np

    from svc_jax import audio_files, bundles, checkpoints, identification, synthesis
    from svc_jax.errors import UserError

    model = bundles.load(name)
    sources = audio_files.find(flags.sources)
    if not sources:
        raise UserError(f"{flags.sources}: holds no audio files; check --sources.")
    if flags.reconstruct:
        pairs, transpose = own_singers(sources, flags.sources), "none"
    else:
        singers = flags.singers or [singer.name for singer in model.card.singers]
        pairs = [(source, singer) for source in sources for singer in singers]
        transpose = flags.transpose
    for _, singer in pairs:
        model.card.singer_id(singer)
    synthesis.transposition(transpose, np.zeros(1), 1.0)  # refuses a wrong one
    identifier = about = None
    if flags.identify:
        sample_rate, data_dir = model.card.sample_rate, model.config.data.dir
        real = identification.real_recordings(flags.singers_from, data_dir, sample_rate)
        if real is not None:
            identifier, about = identification.learn(real, sample_rate, flags.corpora)
    judges = Judges(flags.pyin, identifier, flags.corpora)
    found = conversions(
        model, pairs, output, transpose, reconstruct=flags.reconstruct, judges=judges
    )
    rows, shown = [], {}
    chosen = shown_of(len(pairs))
    for number, (row, sounds) in enumerate(found):
        rows.append(row)
        if number in chosen:
            shown[f"{row['source']} by {row['singer']}"] = sounds
    report = {
        "model": str(name),
        "summary": summarize(rows),
        "speed": speed(model, *pairs[0]),
        "identification": about,
        "conversions": rows,
    }
    checkpoints.write_json(output / "report.json", report)
    return report, shown


def shown_of(count: int) -> set[int]:
    """Which of so many conversions stand on a page: spread over all of them."""
    from svc_jax import evaluation_report

    most = min(count, evaluation_report.MOST_SHOWN)
    return {number * count // most for number in range(most)}


def compare(flags, models: Sequence[str]):
    """Evaluates two models alike, and writes what they did side by side.

    Raises:
      UserError: unless there are two models of different names.
    """
    from svc_jax import checkpoints, evaluation_report
    from svc_jax.errors import UserError

    names = [pathlib.Path(model).name for model in models]
    if len(set(names)) != 2 or len(models) != 2:
        raise UserError(
            f"--compare {' '.join(models)}: name two models whose folders differ in"
            " name."
        )
    output = pathlib.Path(flags.output)
    reports, shown = {}, {}
    for name, model in zip(names, models, strict=True):
        report, sounds = judged(flags, model, output / name)
        reports[name] = report
        for conversion, both in sounds.items():
            of_one = shown.setdefault(conversion, {"source": both["source"]})
            of_one[name] = both["result"]
        print(name)
        print_summary(report["summary"])
    checkpoints.write_json(
        output / "comparison.json",
        {
            name: {"model": r["model"], **r["summary"]["all"]}
            for name, r in reports.items()
        },
    )
    title = f"{names[0]} and {names[1]}"
    evaluation_report.write(
        output, "comparison", title, reports, shown, with_page=flags.page
    )


def main(argv, flags):
    from svc_jax import evaluation_report, pyin
    from svc_jax.errors import UserError

    if flags.pyin:
        pyin.require()
    if flags.page:
        evaluation_report.require_matplotlib()
    if flags.compare:
        compare(flags, argv[1:])
        return
    if argv[1:] or not flags.model:
        said = f"{argv[1]!r} is no flag" if argv[1:] else "--model must be given"
        raise UserError(f"{said}; see --help.")
    output = pathlib.Path(flags.output)
    report, shown = judged(flags, flags.model, output)
    name = pathlib.Path(flags.model).name
    evaluation_report.write(
        output, "report", name, {name: report}, shown, with_page=flags.page
    )
    print_summary(report["summary"])


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string("model", None, "A workdir, or a folder made by export.")
    flags.DEFINE_bool(
        "compare", False, "Evaluate the two models named after it, side by side."
    )
    flags.DEFINE_string(
        "sources", None, "Folder of recordings to convert.", required=True
    )
    flags.DEFINE_list("singers", None, "Whose voices; all by default.")
    flags.DEFINE_string("output", None, "Folder for report and audio.", required=True)
    flags.DEFINE_string("transpose", "mean", "As in svc_jax.convert.")
    flags.DEFINE_bool(
        "reconstruct",
        False,
        "Sing each source in its own singer's voice, SOURCES/<singer>/..., and measure"
        " it against the source itself, also by spectra.",
    )
    flags.DEFINE_bool("page", True, "Write report.html, with sounds and spectrograms.")
    flags.DEFINE_bool("identify", True, "Tell who sings by a classifier.")
    flags.DEFINE_string(
        "singers_from",
        None,
        "Folder of real recordings, DIR/<singer>/..., that the classifier learns from;"
        " else the dataset that the model was trained on.",
    )
    flags.DEFINE_list(
        "corpora",
        [],
        "Patterns of singers' names, one for each corpus, as actor_*,libri_*: who sings"
        " is told within one corpus too, for channels tell corpora apart.",
    )
    flags.DEFINE_bool(
        "pyin", True, "Measure f0 also by a tracker that the model never heard, pYIN."
    )


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__, takes_arguments=True)


if __name__ == "__main__":
    run()
