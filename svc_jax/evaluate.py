"""Measures a model's conversions of a folder of recordings.

  python -m svc_jax.evaluate --model runs/choir --sources held_out/ --output report/

Each source is sung by each singer. VDE, FFE and the f0 error are those of the result
against the f0 it was asked for, both heard by the model's own pitch tracker. Results:
REPORT/report.json and the converted files.
"""

import pathlib

from svc_jax import command_line


def evaluate(model, sources, singers, output, transpose: str = "mean") -> list[dict]:
    """Converts every source to every singer and measures the results.

    Args:
      model: bundles.Model.
      sources: paths of recordings.
      singers: names.
      output: folder; gets <singer>/<source>.wav.
      transpose: see synthesis.transposition.

    Returns:
      One dict per conversion: source, singer, vde, ffe, f0_cents.
    """
    import numpy as np
    from tqdm import tqdm

    from svc_jax import audio_files, measures, synthesis

    sample_rate = model.extractor.geometry.sample_rate
    rows = []
    pairs = [(source, singer) for source in sources for singer in singers]
    for source, singer in tqdm(pairs, unit="song", disable=None):
        recording = audio_files.read(source, sample_rate)
        audio, asked = synthesis.convert(
            model, recording.audio, {singer: 1.0}, transpose=transpose
        )
        path = pathlib.Path(output) / singer / f"{pathlib.Path(source).stem}.wav"
        audio_files.write(path, np.clip(audio, -1, 1), sample_rate)
        heard = model.extractor.extract_recordings(model.frozen, [audio])[0]
        measured = measures.f0_measures(heard.features.f0_hz, asked.f0_hz)
        rows.append({"source": str(source), "singer": singer, **measured})
    return rows


def summarize(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Means over conversions, for each singer and for all."""
    import numpy as np

    groups = {"all": rows}
    for row in rows:
        groups.setdefault(row["singer"], []).append(row)
    return {
        name: {
            key: float(np.nanmean([row[key] for row in group]))
            for key in ("vde", "ffe", "f0_cents")
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
        print(
            f"{name:20s} {values['vde']:7.1%} {values['ffe']:7.1%}"
            f" {values['f0_cents']:4.0f} cents"
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
