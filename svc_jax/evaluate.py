"""Measures a model's conversions of a folder of recordings.

  python -m svc_jax.evaluate --model runs/choir --sources held_out/ --output report/

Each source is sung by each singer. VDE, FFE and the f0 error are those of the result
against the f0 it was asked for, heard by the model's own pitch tracker; in the report
also heard by pYIN, which does not condition the generator. Beside them stands the
correlation of loudness. With --reconstruct, also the spectral distance and the
mel-cepstral distortion. Results: OUTPUT/report.json and OUTPUT/<singer>/*.wav.
"""

import os
import pathlib

from svc_jax import command_line

PRINTED = {  # of a summary, with the heading and the form they are printed in
    "vde": ("VDE", "{:.1%}"),
    "ffe": ("FFE", "{:.1%}"),
    "f0_cents": ("f0 cents", "{:.0f}"),
    "loudness_correlation": ("loudness", "{:.3f}"),
    "spectral": ("spectral", "{:.3f}"),
    "mcd_db": ("MCD dB", "{:.2f}"),
}


def evaluate(
    model,
    pairs,
    output,
    transpose: str = "mean",
    *,
    reconstruct: bool = False,
    by_pyin: bool = False,
) -> list[dict]:
    """Sings sources in voices and measures the results.

    Args:
      model: bundles.Model.
      pairs: of a recording's path and a singer's name.
      output: folder; gets <singer>/<source>.wav, with the folders of the sources.
      transpose: see synthesis.transposition.
      reconstruct: each singer is the source's own, so that the source is the truth.
      by_pyin: measure f0 by pYIN too.

    Returns:
      One dict for each pair: source, singer, what measures.f0_measures gives,
      loudness_correlation, pyin_... for what it gives between the source by pYIN,
      shifted, and the result by pYIN and, for a reconstruction, spectral and mcd_db;
      None for what is not defined, as f0_cents where source and result are nowhere
      voiced together.

    Raises:
      UserError: for a bad recording, or two whose results would have one name.
    """
    import numpy as np
    from tqdm import tqdm

    from svc_jax import audio_files, measures, pyin, synthesis

    def features_of(audio):
        return model.extractor.extract_recordings(model.frozen, [audio])[0].features

    sample_rate = model.extractor.geometry.sample_rate
    rows = []
    names = result_names([source for source, _ in pairs])
    read = None
    for source, singer in tqdm(pairs, unit="song", disable=None):
        if source != read:  # the next singer's source is mostly the same
            truth, read = audio_files.read(source, sample_rate).audio, source
            own = features_of(truth)
            own_pyin = pyin.track(truth, sample_rate) if by_pyin else None
        audio, asked = synthesis.convert(
            model, truth, {singer: 1.0}, transpose=transpose, heard=own
        )
        path = pathlib.Path(output) / singer / names[source]
        audio_files.write(path, np.clip(audio, -1, 1), sample_rate)
        heard = features_of(audio)
        measured = measures.f0_measures(heard.f0_hz, asked.f0_hz)
        measured["loudness_correlation"] = measures.correlation(
            heard.loudness_db, asked.loudness_db
        )
        if by_pyin:
            wanted = own_pyin * shift(own.f0_hz, asked.f0_hz)
            errors = measures.f0_measures(pyin.track(audio, sample_rate), wanted)
            measured |= {f"pyin_{name}": value for name, value in errors.items()}
        if reconstruct:
            measured["spectral"] = measures.spectral_distance(audio, truth)
            measured["mcd_db"] = measures.mel_cepstral_distortion(
                audio, truth, sample_rate
            )
        # JSON knows no NaN.
        known = {k: None if np.isnan(v) else v for k, v in measured.items()}
        rows.append({"source": str(source), "singer": singer, **known})
    return rows


def shift(own_hz, asked_hz) -> float:
    """The factor between the f0 of a source and what was asked for, [T] each."""
    import numpy as np

    both = (own_hz > 0) & (asked_hz > 0)
    # The median: what was asked for is free of the source's slips of an octave.
    return float(np.median(asked_hz[both] / own_hz[both])) if both.any() else 1.0


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


def main(_, flags):
    from svc_jax import audio_files, bundles, checkpoints, pyin
    from svc_jax.errors import UserError

    if flags.pyin:
        pyin.require()
    model = bundles.load(flags.model)
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
    rows = evaluate(
        model,
        pairs,
        flags.output,
        transpose,
        reconstruct=flags.reconstruct,
        by_pyin=flags.pyin,
    )
    summary = summarize(rows)
    checkpoints.write_json(
        pathlib.Path(flags.output) / "report.json",
        {"model": flags.model, "summary": summary, "conversions": rows},
    )
    print_summary(summary)


def define_flags():
    """Flags of the command line."""
    from absl import flags

    flags.DEFINE_string(
        "model", None, "A workdir, or a folder made by export.", required=True
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
    flags.DEFINE_bool(
        "pyin", True, "Measure f0 also by a tracker that the model never heard, pYIN."
    )


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
