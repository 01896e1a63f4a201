"""Measures a model's conversions of a folder of recordings.

  python -m svc_jax.evaluate --model runs/choir --sources held_out/ --output report/

Each source is sung by each singer. VDE, FFE and the f0 error are those of the result
against the f0 it was asked for, both heard by the model's own pitch tracker. Results:
OUTPUT/report.json and OUTPUT/<singer>/*.wav.
"""

import os
import pathlib

from svc_jax import command_line


def evaluate(model, sources, singers, output, transpose: str = "mean") -> list[dict]:
    """Converts every source to every singer and measures the results.

    Args:
      model: bundles.Model.
      sources: paths of recordings.
      singers: names.
      output: folder; gets <singer>/<source>.wav, with the folders of the sources.
      transpose: see synthesis.transposition.

    Returns:
      One dict per conversion: source, singer, vde, ffe, f0_cents; None for the last
      one where source and result are nowhere voiced together.

    Raises:
      UserError: for a bad recording, or two whose results would have one name.
    """
    import numpy as np
    from tqdm import tqdm

    from svc_jax import audio_files, measures, synthesis

    sample_rate = model.extractor.geometry.sample_rate
    rows = []
    names = result_names(sources)
    pairs = [(source, singer) for source in sources for singer in singers]
    for source, singer in tqdm(pairs, unit="song", disable=None):
        recording = audio_files.read(source, sample_rate)
        audio, asked = synthesis.convert(
            model, recording.audio, {singer: 1.0}, transpose=transpose
        )
        path = pathlib.Path(output) / singer / names[source]
        audio_files.write(path, np.clip(audio, -1, 1), sample_rate)
        heard = model.extractor.extract_recordings(model.frozen, [audio])[0]
        measured = measures.f0_measures(heard.features.f0_hz, asked.f0_hz)
        if np.isnan(measured["f0_cents"]):
            measured["f0_cents"] = None  # JSON knows no NaN
        rows.append({"source": str(source), "singer": singer, **measured})
    return rows


def result_names(sources) -> dict:
    """For each source the name of its results: as below the folder of all, but .wav.

    Raises:
      UserError: if two would have one name.
    """
    from svc_jax.errors import UserError

    folder = os.path.commonpath([pathlib.Path(source).parent for source in sources])
    names = {}
    for source in sources:
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
            key: mean(row[key] for row in group) for key in ("vde", "ffe", "f0_cents")
        }
        for name, group in groups.items()
    }


def main(_, flags):
    from svc_jax import audio_files, bundles, checkpoints
    from svc_jax.errors import UserError

    model = bundles.load(flags.model)
    singers = flags.singers or [singer.name for singer in model.card.singers]
    for name in singers:
        model.card.singer_id(name)
    sources = audio_files.find(flags.sources)
    if not sources:
        raise UserError(f"{flags.sources}: holds no audio files; check --sources.")
    rows = evaluate(model, sources, singers, flags.output, flags.transpose)
    summary = summarize(rows)
    checkpoints.write_json(
        pathlib.Path(flags.output) / "report.json",
        {"model": flags.model, "summary": summary, "conversions": rows},
    )
    print(f"{'singer':20s} {'VDE':>7s} {'FFE':>7s} {'f0 error':>10s}")
    for name, values in summary.items():
        cents = values["f0_cents"]
        print(
            f"{name:20s} {values['vde']:7.1%} {values['ffe']:7.1%}"
            + (" no pitch" if cents is None else f" {cents:4.0f} cents")
        )


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


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
