"""The demo: trains on the embedded corpus, converts a song, compares with the truth.

Everything lands under runs/demo: the training run, source.wav, before.wav, converted.wav,
truth.wav and comparison.png. A second run resumes, or only converts again.
"""

import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SOURCE, TARGET = "tenor", "alto"


def picture(path, rows: dict, sample_rate: int):
    """Writes spectrograms of audio [N], one above the other."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from svc_jax import metrics

    figure, axes = plt.subplots(len(rows), 1, figsize=(10, 8), sharex=True)
    for axis, (title, audio) in zip(axes, rows.items(), strict=True):
        seconds = len(audio) / sample_rate
        axis.imshow(
            metrics.spectrogram_db(audio),
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=-60,
            vmax=40,
            extent=(0, seconds, 0, sample_rate / 2000),
        )
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    started = time.monotonic()
    import numpy as np

    from configs import fast
    from data_pipeline import demo_corpus
    from svc_jax import audio_files, bundles, excitation, measures, synthesis, train

    workdir = pathlib.Path("runs/demo")
    train.train(fast.get_config("demo"), workdir)

    print(f"converting a song that was not trained on, {SOURCE} to {TARGET}")
    singers = {singer.name: singer for singer in demo_corpus.SINGERS}
    score = demo_corpus.score(demo_corpus.held_out_songs()[0])
    source = demo_corpus.render(score, singers[SOURCE])
    model = bundles.load(workdir)
    converted, asked = synthesis.convert(model, source, {TARGET: 1.0})
    before, _ = synthesis.convert(bundles.untrained(model), source, {TARGET: 1.0})
    # What the target singer sings at the f0 that the conversion was asked for.
    f0_hz = excitation.interpolate_f0(
        asked.f0_hz[None],
        model.extractor.geometry.hop_length,
        demo_corpus.HOP_LENGTH,
        score.voiced.size,
    )[0]
    truth = demo_corpus.render(score, singers[TARGET], f0_hz=np.asarray(f0_hz))

    sung = {
        f"source ({SOURCE})": source,
        "before training": before,
        f"converted to {TARGET}": converted,
        f"truth ({TARGET})": truth,
    }
    rate = demo_corpus.SAMPLE_RATE
    for name in ("source", "before", "converted", "truth"):
        audio = next(value for key, value in sung.items() if key.startswith(name))
        audio_files.write(workdir / f"{name}.wav", audio.clip(-1, 1), rate)
    picture(workdir / "comparison.png", sung, rate)

    print(f"{'against the truth':22s} {'spectral':>9s} {'f0 error':>10s} {'FFE':>7s}")
    for name, audio in sung.items():
        heard = model.extractor.extract_recordings(model.frozen, [audio])[0]
        pitch = measures.f0_measures(heard.features.f0_hz, asked.f0_hz)
        distance = measures.spectral_distance(audio, truth)
        print(
            f"{name:22s} {distance:9.3f} {pitch['f0_cents']:4.0f} cents"
            f" {pitch['ffe']:7.1%}"
        )
    print(f"listen to runs/demo/*.wav, look at {workdir / 'comparison.png'}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
