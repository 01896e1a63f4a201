"""The recogniser's trainer."""

import functools
import json

import jax
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import asr
from svc_jax import train_asr, weights
from svc_jax.errors import UserError

SEQUENCES = st.lists(st.integers(0, 3), max_size=6)


@functools.cache
def distance(a, b) -> int:
    """Levenshtein's recursion as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        distance(a[1:], b) + 1,
        distance(a, b[1:]) + 1,
        distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, SEQUENCES)
def test_edit_distance_is_levenshteins(found, wanted):
    assert train_asr.edit_distance(found, wanted) == distance(
        tuple(found), tuple(wanted)
    )


def test_greedy_drops_repeats_and_blanks_and_stops_at_the_end():
    path = [2, 0, 0, 2, 0, 1, 1, 2, 1]  # 2 is the blank
    logits = np.eye(3)[[path, path]]
    assert train_asr.greedy(logits, np.asarray([9, 4]), 2) == [[0, 0, 1, 1], [0]]


def test_time_masks_zero_spans_of_frames_for_all_coefficients():
    masked = np.asarray(
        train_asr.mask_time(jax.random.key(0), np.ones((64, 200, 3)), 2, 20)
    )
    assert (masked.min(-1) == masked.max(-1)).all()
    zeros = 200 - masked[..., 0].sum(axis=1)
    assert zeros.max() <= 40
    assert 10 < zeros.mean() < 30  # two spans of 10 on average, some overlap


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
    config.data.tsv = str(table)
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
    rates = [line["test/label_error_rate"] for line in lines if len(line) == 3]
    assert len(rates) == 2
    # Again: only the weights are written, the same.
    before = path.read_bytes()
    path.unlink()
    assert train_asr.train(tiny_config(speech), workdir).read_bytes() == before


def test_recordings_that_cannot_be_used_are_counted(speech, tmp_path, capsys):
    with speech.open("a") as table:
        table.write("missing.wav\ttrain\tx\tab\n")
        table.write("3.wav\ttrain\tx\t\n")
        table.write("4.wav\ttrain\tx\t" + "ab" * 40 + "\n")
    config = tiny_config(speech)
    config.num_steps = 1
    train_asr.train(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "left out 1: empty transcript" in printed
    assert "left out 1: more labels than frames" in printed
    assert "missing.wav: no such file" in printed


def test_a_table_without_usable_rows_is_refused(tmp_path):
    table = tmp_path / "transcripts.tsv"
    table.write_text("path\tsplit\tspeaker\ttext\nx.wav\ttrain\tx\tab\n")
    with pytest.raises(UserError, match="no usable row of split train"):
        train_asr.train(tiny_config(table), tmp_path / "run")
