"""The demo's dataset, made from nothing."""

import pathlib
import shutil

import pytest
import soundfile

from data_pipeline import demo_corpus, embedded_dataset, transcripts
from svc_jax import train_asr, weights
from svc_jax.errors import UserError
from svc_jax.geometry import FrameGeometry


def no_crepe(*arguments, **options):
    raise UserError("No weights of crepe-tiny: they cannot be had here; fetch them.")


def test_without_crepe_the_demo_goes_on_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(weights, "crepe", no_crepe)
    assert embedded_dataset.pitch_network() == "yin"
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("note: No weights of crepe-tiny")
    assert "YIN" in second
    assert "without L_crepe" in second


def test_with_crepe_the_demo_uses_it(monkeypatch, capsys):
    monkeypatch.setattr(weights, "crepe", lambda capacity, **options: None)
    assert embedded_dataset.pitch_network() == "crepe-tiny"
    assert capsys.readouterr().out == ""


def test_phrases_are_sung_by_all_singers_with_their_transcripts(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_dataset, "NUM_PHRASES", 24)
    table = embedded_dataset.write_phrases(tmp_path / "phrases")
    rows = transcripts.read_table(table)
    assert len(rows) == 24
    assert {row["speaker"] for row in rows} == {s.name for s in demo_corpus.SINGERS}
    splits = [row["split"] for row in rows]
    assert splits.count("validation") == 2
    labels = transcripts.alphabet(rows, "phones")
    assert set(labels) == set(demo_corpus.PHONES)
    loaded, left_out = transcripts.load(table.parent, rows, "phones", labels)
    assert not left_out
    assert sum(map(len, loaded.values())) == 24
    for row in rows:
        assert 0.5 < soundfile.info(table.parent / row["path"]).duration < 6
        assert len(row["text"].split()) == embedded_dataset.NOTES_PER_PHRASE
    assert [p.name for p in tmp_path.iterdir()] == ["phrases"]


def test_phrases_that_are_there_are_kept(tmp_path, monkeypatch):
    (tmp_path / "transcripts.tsv").write_text("mine")
    monkeypatch.setattr(demo_corpus, "render", pytest.fail)
    table = embedded_dataset.write_phrases(tmp_path)
    assert table.read_text() == "mine"


def test_the_dataset_is_made_of_the_corpus_and_the_recogniser_once(
    tmp_path, monkeypatch, dataset, recordings, wav2letter_file
):
    def write_corpus(folder):
        shutil.copytree(recordings, folder / "recordings")
        return folder

    def train(config, workdir) -> pathlib.Path:
        assert (
            pathlib.Path(config.data.transcripts)
            == tmp_path / "phrases" / "transcripts.tsv"
        )
        assert workdir == tmp_path / "asr"
        return wav2letter_file

    monkeypatch.setattr(embedded_dataset, "NUM_PHRASES", 1)
    monkeypatch.setattr(demo_corpus, "write_corpus", write_corpus)
    monkeypatch.setattr(train_asr, "train", train)
    monkeypatch.setattr(weights, "crepe", no_crepe)
    made = embedded_dataset.make(tmp_path, FrameGeometry())
    assert made == tmp_path / "dataset"
    names = {p.name for p in dataset.iterdir()}
    assert {p.name for p in made.iterdir()} == names
    for name in ("singers.json", "singing-train.tfrecord-00000"):
        assert (made / name).read_bytes() == (dataset / name).read_bytes()
    monkeypatch.setattr(train_asr, "train", pytest.fail)
    monkeypatch.setattr(demo_corpus, "write_corpus", pytest.fail)
    assert embedded_dataset.make(tmp_path, FrameGeometry()) == made
