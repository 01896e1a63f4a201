"""Measuring conversions of a folder."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import soundfile

from svc_jax import bundles, evaluate, hearing, synthesis
from svc_jax.errors import UserError


@pytest.fixture(scope="module")
def model(model_workdir) -> bundles.Model:
    return bundles.load(model_workdir)


def song(hz: float, num_samples: int = 16_000) -> np.ndarray:
    turns = hz * np.arange(num_samples) / 16_000
    audio = sum(0.3 / k * np.sin(2 * np.pi * k * turns) for k in range(1, 6))
    return audio.astype(np.float32)


@pytest.fixture
def sources(tmp_path) -> pathlib.Path:
    """Two songs of one name, of two singers."""
    folder = tmp_path / "sources"
    for singer, hz in (("anna", 300.0), ("bert", 140.0)):
        (folder / singer).mkdir(parents=True)
        soundfile.write(folder / singer / "song.wav", song(hz), 16_000)
    return folder


# Names.


def test_results_keep_the_folders_of_their_sources():
    sources = ["/x/held/a/1.wav", "/x/held/b/1.flac", "/x/held/2.ogg"]
    names = evaluate.result_names(sources)
    assert [str(names[s]) for s in sources] == ["a/1.wav", "b/1.wav", "2.wav"]
    (name,) = evaluate.result_names(["/x/held/a/1.flac"]).values()
    assert str(name) == "1.wav"


def test_two_sources_with_one_result_are_refused():
    with pytest.raises(UserError, match="x/1.wav: its results would be those of"):
        evaluate.result_names(["x/1.flac", "x/1.wav"])


# Measures.


def copies(ratio: float):
    """A conversion that gives the source as it is, and says it was asked to shift."""

    def convert(model, audio, mix, *, transpose, heard):
        return audio, heard.replace(f0_hz=heard.f0_hz * np.float32(ratio))

    return convert


@pytest.mark.parametrize(
    ("ratio", "cents", "is_off"),
    [(1.0, 0, False), (2 ** (1 / 12), 100, False), (1.5, 702, True)],
)
def test_the_result_is_measured_against_what_was_asked_for(
    model, sources, tmp_path, monkeypatch, ratio, cents, is_off
):
    monkeypatch.setattr(synthesis, "convert", copies(ratio))
    paths = sorted(sources.rglob("*.wav"))
    pairs = [(path, "alto") for path in paths]
    rows = evaluate.evaluate(model, pairs, tmp_path / "out")
    assert [row["source"] for row in rows] == [str(path) for path in paths]
    for row, path in zip(rows, paths, strict=True):
        assert row["singer"] == "alto"
        assert "spectral" not in row  # there is no truth
        assert row["loudness_correlation"] == pytest.approx(1)
        assert row["vde"] == 0
        assert row["f0_cents"] == pytest.approx(cents, abs=0.1)
        assert (row["ffe"] > 0.8) == is_off
        written, _ = soundfile.read(
            tmp_path / "out" / "alto" / path.parent.name / "song.wav"
        )
        np.testing.assert_allclose(written, soundfile.read(path)[0], atol=2**-15)


def test_where_nothing_is_voiced_the_f0_error_is_unknown(
    model, sources, tmp_path, monkeypatch
):
    monkeypatch.setattr(synthesis, "convert", copies(0.0))
    paths = sorted(sources.rglob("*.wav"))
    pairs = [(path, "alto") for path in paths]
    rows = evaluate.evaluate(model, pairs, tmp_path / "out")
    assert [row["f0_cents"] for row in rows] == [None, None]
    assert evaluate.summarize(rows)["all"]["f0_cents"] is None


def test_summary_is_the_means_of_each_singer_and_of_all():
    rows = [
        {"singer": "a", "vde": 0.1, "ffe": 0.2, "f0_cents": 10.0},
        {"singer": "b", "vde": 0.3, "ffe": 0.4, "f0_cents": None},
        {"singer": "a", "vde": 0.2, "ffe": 0.6, "f0_cents": 30.0},
    ]
    summary = evaluate.summarize(rows)
    assert list(summary) == ["all", "a", "b"]
    assert summary["all"] == pytest.approx({"vde": 0.2, "ffe": 0.4, "f0_cents": 20.0})
    assert summary["a"] == pytest.approx({"vde": 0.15, "ffe": 0.4, "f0_cents": 20.0})
    assert summary["b"] == {"vde": 0.3, "ffe": 0.4, "f0_cents": None}


def test_a_reconstruction_is_measured_against_its_source(
    model, sources, tmp_path, monkeypatch
):
    monkeypatch.setattr(synthesis, "convert", copies(1.0))
    paths = sorted(sources.rglob("*.wav"))
    pairs = evaluate.own_singers(paths, sources)
    assert [singer for _, singer in pairs] == ["anna", "bert"]
    rows = evaluate.evaluate(model, pairs, tmp_path / "out", reconstruct=True)
    for row in rows:
        assert (row["spectral"], row["mcd_db"], row["vde"]) == (0, 0, 0)


def test_words_are_compared_with_what_the_source_reads(
    model, sources, tmp_path, monkeypatch
):
    reads = iter([[0, 1, 2, 3], [0, 2, 3, 3]])
    monkeypatch.setattr(hearing.decoding, "greedy", lambda *_: [next(reads)])
    monkeypatch.setattr(synthesis, "convert", copies(1.0))
    pairs = [(sources / "anna" / "song.wav", "alto")]
    [row] = evaluate.evaluate(model, pairs, tmp_path / "out")
    assert row["label_error"] == 0.5


def test_label_scores_are_those_of_the_recording_alone(model):
    audio = song(200.0, 17_000)
    scores = model.extractor.label_scores(model.frozen, audio)
    padded = np.pad(audio, (0, 17_280 - 17_000))[None]
    activations, _ = model.extractor.read(model.frozen, padded)
    assert scores.shape == (54, 5)
    np.testing.assert_allclose(scores, activations["logits"][0], atol=1e-4)


def test_a_shift_is_the_factor_of_what_was_asked_for():
    own = np.asarray([0, 100, 200, 400, 300], np.float32)
    asked = np.asarray([0, 150, 300, 300, 0], np.float32)  # an octave was repaired
    assert hearing.shift(own, asked) == pytest.approx(1.5)
    assert hearing.shift(own, 0 * own) == 1.0


def test_real_time_is_counted_once_all_is_compiled(model, monkeypatch):
    clock = iter([10.0, 10.5])
    calls = []
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(
        bundles.Model, "convert", lambda *args: calls.append(args[1:]) or args[1]
    )
    audio = song(200.0, 32_000)
    assert evaluate.real_time_factor(model, audio, "alto") == 0.25
    assert [call[1:] for call in calls] == [(16_000, "alto")] * 2


# The entry point.


def test_each_source_is_sung_by_its_own_singer(start, model_workdir, tmp_path):
    for singer, hz in (("alto", 300.0), ("bass", 140.0)):
        path = tmp_path / "held" / singer / "album" / "song.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, song(hz), 16_000)
    arguments = [
        f"--model={model_workdir}",
        f"--sources={tmp_path / 'held'}",
        f"--output={tmp_path / 'report'}",
        "--reconstruct",
    ]
    code, out, err = start(evaluate, *arguments)
    assert (code, err) == (0, "")
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["conversions"]
    assert [row["singer"] for row in rows] == ["alto", "bass"]
    assert all(row["spectral"] > 0 and row["mcd_db"] > 0 for row in rows)
    assert out.splitlines()[0].split()[-3:] == ["spectral", "MCD", "dB"]

    (tmp_path / "held" / "alto").rename(tmp_path / "held" / "tenor")
    code, _, err = start(evaluate, *arguments)
    assert code == 2
    assert err.startswith("error: singer 'tenor' is unknown; the model knows alto,")


def test_a_report_has_every_song_by_every_singer(
    start, sources, model_workdir, tmp_path
):
    report = tmp_path / "report"
    code, out, err = start(
        evaluate,
        f"--model={model_workdir}",
        f"--sources={sources}",
        f"--output={report}",
    )
    assert (code, err) == (0, "")
    text = (report / "report.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)  # no NaN: strict JSON
    assert content["model"] == str(model_workdir)
    found = [(row["source"], row["singer"]) for row in content["conversions"]]
    songs = [str(sources / name / "song.wav") for name in ("anna", "bert")]
    assert found == [(song_, singer) for song_ in songs for singer in ("alto", "bass")]
    for singer in ("alto", "bass"):
        for source in ("anna", "bert"):
            info = soundfile.info(report / singer / source / "song.wav")
            assert info.frames == 16_000
    for row in content["conversions"]:
        assert 0 <= row["vde"] <= row["ffe"] <= 1
        assert 0 <= row["pyin_vde"] <= row["pyin_ffe"] <= 1
    assert content["speed"]["real_time_factor"] > 0
    assert content["speed"]["seconds"] == 1
    header, *lines = out.splitlines()
    assert header.split() == ["singer", "VDE", "FFE", "f0", "cents", "loudness"]
    assert [line.split()[0] for line in lines] == ["all", "alto", "bass"]
    vde = content["summary"]["bass"]["vde"]
    assert lines[2].split()[1] == f"{vde:.1%}"


def test_a_report_is_written_for_programs_and_for_people(
    start, sources, model_workdir, tmp_path
):
    report = tmp_path / "report"
    code, _, err = start(
        evaluate,
        f"--model={model_workdir}",
        f"--sources={sources / 'anna'}",
        f"--output={report}",
        "--nopyin",
        "--corpora=al*,ba*",
    )
    assert (code, err) == (0, "")
    content = json.loads((report / "report.json").read_text())
    told = content["identification"]
    assert told["singers"] == ["alto", "bass"]
    assert set(told["held_out"]) == {
        "identified",
        "identified_in_corpus",
        "nearest_centroid",
        "cosine",
    }
    for row in content["conversions"]:
        assert row["identified"] in (0, 1)
        assert row["identified_in_corpus"] == 1  # each is alone in its corpus
    assert "pyin_vde" not in content["conversions"][0]
    assert (report / "report.md").read_text().startswith("# choir\n")
    page = (report / "report.html").read_text()
    assert page.count("<audio") == 4
    assert "song.wav by bass" in page


def test_two_models_are_compared(start, sources, model_workdir, tmp_path):
    other = shutil.copytree(model_workdir, tmp_path / "other")
    output = tmp_path / "both"
    arguments = [f"--sources={sources / 'anna'}", f"--output={output}", "--nopyin"]
    arguments += ["--singers=alto", "--noidentify"]
    code, out, err = start(evaluate, "--compare", model_workdir, other, *arguments)
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if " " not in line] == ["choir", "other"]
    content = json.loads((output / "comparison.json").read_text())
    assert set(content) == {"choir", "other"}
    assert content["choir"]["vde"] == content["other"]["vde"]
    assert (output / "other" / "report.json").exists()
    assert "|  | choir | other |" in (output / "comparison.md").read_text()
    assert (output / "comparison.html").read_text().count("<audio") == 3

    code, _, err = start(evaluate, "--compare", other, *arguments)
    assert code == 2
    assert err.startswith(f"error: --compare {other}: name two models whose folders")


def test_what_is_shown_is_spread_over_all():
    assert evaluate.shown_of(3) == {0, 1, 2}
    chosen = evaluate.shown_of(1000)
    assert len(chosen) == 12
    assert max(np.diff(sorted(chosen))) <= 84


def test_singers_can_be_chosen(start, sources, model_workdir, tmp_path):
    code, out, _ = start(
        evaluate,
        f"--model={model_workdir}",
        f"--sources={sources / 'anna'}",
        f"--output={tmp_path / 'report'}",
        "--singers=bass",
        "--transpose=none",
        "--nopyin",
        "--nopage",
        "--noidentify",
    )
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["all", "bass"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--singers=bass,tenor"], "singer 'tenor' is unknown; the model knows alto,"),
        (["more"], "'more' is no flag; see --help."),
        (["--model="], "--model must be given; see --help."),
        (["--sources=EMPTY"], "EMPTY: holds no audio files; check --sources."),
        (["--transpose=up"], "--transpose 'up': choose mean, octave, none or"),
    ],
)
def test_wrong_wishes_are_refused(start, sources, model_workdir, tmp_path, flags, said):
    empty = tmp_path / "empty"
    empty.mkdir()
    code, out, err = start(
        evaluate,
        f"--model={model_workdir}",
        f"--sources={sources}",
        f"--output={tmp_path / 'report'}",
        *(flag.replace("EMPTY", str(empty)) for flag in flags),
    )
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said.replace('EMPTY', str(empty))}")
    assert not (tmp_path / "report").exists()
