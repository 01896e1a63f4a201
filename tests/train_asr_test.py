"""The recogniser's trainer."""

import contextlib
import json

import numpy as np
import pytest
import soundfile

from configs import asr
from svc_jax import checkpoints, train_asr, weights
from svc_jax.errors import UserError


@pytest.fixture
def speech(tmp_path):
    """A table of tones: low ones are spelled `a`, high ones `b`."""
    rng = np.random.default_rng(0)
    rows = ["path\tsplit\tspeaker\ttext"]
    for number in range(12):
        text = "".join(rng.choice(["a", "b"], 2))
        tones = []
        for letter in text:
            hz = 300 if letter == "a" else 2000
            time = np.arange(4000) / 16000
            tones += [0.3 * np.sin(2 * np.pi * hz * time), np.zeros(2000)]
        audio = np.concatenate(tones) + 0.001 * rng.standard_normal(12000)
        soundfile.write(tmp_path / f"{number}.wav", audio, 16000)
        split = "test" if number < 3 else "train"
        rows.append(f"{number}.wav\t{split}\tx\t{text}")
    (tmp_path / "transcripts.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path / "transcripts.tsv"


def tiny_config(table):
    config = asr.get_config("demo")
    config.data.transcripts = str(table)
    config.data.unit = "letters"
    config.network.channels = 8
    config.network.wide_channels = 8
    config.batch_seconds = 9.0
    config.num_steps = 60
    config.learning_rate = 1e-2
    config.checkpoint_every = 30
    return config


def test_training_learns_and_writes_weights_that_load(speech, tmp_path):
    workdir = tmp_path / "run"
    path = train_asr.train(tiny_config(speech), workdir)
    loaded = weights.wav2letter(path)
    assert loaded.config["labels"] == ["a", "b", "@"]
    assert loaded.config["num_labels"] == 3
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["loss/ctc"] for line in lines if "loss/ctc" in line]
    assert losses[-1] < 0.5 * losses[0]
    measured = [line for line in lines if "test/letter_error_rate" in line]
    assert [line["step"] for line in measured] == [30, 60]
    report = json.loads((workdir / "report.json").read_text())["test"]
    last = {k.partition("/")[2]: v for k, v in measured[-1].items() if "test/" in k}
    assert report["greedy"] == last
    assert set(last) == {"letter_error_rate", "word_error_rate"}
    # Again: only the weights are written, the same.
    before = path.read_bytes()
    path.unlink()
    assert train_asr.train(tiny_config(speech), workdir).read_bytes() == before


def test_a_run_that_is_told_to_stop_goes_on_as_if_it_had_not(
    speech, tmp_path, monkeypatch
):
    whole = train_asr.train(tiny_config(speech), tmp_path / "whole").read_bytes()

    @contextlib.contextmanager
    def told_at_seven(_):
        yield lambda step: step == 7

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "preemption", told_at_seven)
        with pytest.raises(SystemExit) as stopped:
            train_asr.train(tiny_config(speech), tmp_path / "run")
    assert stopped.value.code == 0
    assert checkpoints.steps(tmp_path / "run") == [7]
    assert train_asr.train(tiny_config(speech), tmp_path / "run").read_bytes() == whole


def test_a_workdir_in_use_is_refused(speech, tmp_path):
    with (
        checkpoints.lock(tmp_path / "run"),
        pytest.raises(UserError, match="in use by process"),
    ):
        train_asr.train(tiny_config(speech), tmp_path / "run")


def test_recordings_that_cannot_be_used_are_counted_and_listed(
    speech, tmp_path, capsys
):
    with speech.open("a") as table:
        table.write("missing.wav\ttrain\tx\tab\n")
        table.write("3.wav\ttrain\tx\t\n")
        table.write("4.wav\ttrain\tx\t" + "ab" * 40 + "\n")
        table.write("5.wav\ttest\tx\tabc\n")
    soundfile.write(speech.parent / "untold.wav", np.ones(4000), 16000)
    config = tiny_config(speech)
    labels, splits = train_asr.load_splits(config.data, tmp_path / "run")
    assert labels == ("a", "b")
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 9,
        "test": 3,
    }
    printed = capsys.readouterr().out
    listed = (tmp_path / "run" / "left_out.tsv").read_text().splitlines()
    for path, reason in {
        "missing.wav": "no such recording",
        "3.wav": "empty transcript",
        "4.wav": "more labels than frames",
        "5.wav": "labels outside the alphabet: c",
        "untold.wav": "no transcript",
    }.items():
        assert f"{path}\t{reason}" in listed
        assert f"left out 1: {reason.partition(':')[0]}" in printed


def test_a_table_without_usable_rows_is_refused(tmp_path):
    table = tmp_path / "transcripts.tsv"
    table.write_text("path\tsplit\tspeaker\ttext\nx.wav\ttrain\tx\tab\n")
    with pytest.raises(UserError, match="no usable recording of split train"):
        train_asr.train(tiny_config(table), tmp_path / "run")
    assert "x.wav\tno such recording" in (tmp_path / "run/left_out.tsv").read_text()
