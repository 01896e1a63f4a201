"""What is measured of a recogniser, on layers whose content is known."""

import itertools

import numpy as np
import pytest

from data_pipeline.transcripts import Utterance
from svc_jax import builders, evaluate_asr, recognition
from svc_jax.errors import UserError
from svc_jax.weights import Weights

LABELS = ("a", "b", " ")
BLANK = len(LABELS)
TEXTS = ((0, 2, 1), (1, 2, 0))


def heard(number: int, path=None):
    """A recording of one of four speakers, and layers: `mfcc` knows who, `logits` what."""
    rng = np.random.default_rng(number)
    said = TEXTS[number % 2]
    path = [BLANK, *itertools.chain.from_iterable((n, n, BLANK) for n in path or said)]
    voice = np.eye(4)[number % 4]
    layers = {
        "mfcc": voice + 0.1 * rng.normal(size=(len(path), 4)),
        "hidden": rng.normal(size=(len(path), 4)),
        "wide": np.eye(4)[path] + 0.1 * rng.normal(size=(len(path), 4)),
        "logits": 9.0 * np.eye(4)[path],
    }
    audio = np.zeros(160, np.int16)
    utterance = Utterance(f"{number}.wav", str(number % 4), audio, np.asarray(said))
    return utterance, {k: np.float32(v) for k, v in layers.items()}


def report(monkeypatch, recordings, unit="letters"):
    monkeypatch.setattr(recognition, "outputs", lambda *_: iter(recordings))
    utterances = [utterance for utterance, _ in recordings]
    return recognition.report(None, None, utterances, LABELS, unit, {})


def test_a_report_tells_what_each_layer_holds(monkeypatch):
    found = report(monkeypatch, [heard(n) for n in range(48)])
    assert (found["recordings"], found["speakers"]) == (48, 4)
    assert found["greedy"] == {"letter_error_rate": 0.0, "word_error_rate": 0.0}
    assert found["beam"] == found["greedy"]
    assert found["choice"] == {"accuracy": 1.0, "chance": 0.5}
    assert found["singer_probe"]["mfcc"] == 1.0
    # The two texts are of two speakers each: 50 % is what content alone can tell.
    assert found["singer_probe"]["logits"] <= 0.55
    # Two thirds of the frames are of a label, the others near one.
    assert found["phone_probe"]["wide"] > 0.65
    assert found["phone_probe"]["mfcc"] < 0.5
    said = "\n".join(recognition.lines({"test": found}))
    assert "test: 48 recordings of 4 speakers" in said
    assert "which transcript: 100.0% right (chance 50%)" in said


def test_errors_are_counted_by_letters_and_words(monkeypatch):
    wrong = heard(1, path=(1, 2, 1))  # of "b a": one of 3 letters, one of 2 words
    found = report(monkeypatch, [heard(0), wrong])
    assert found["greedy"]["letter_error_rate"] == pytest.approx(1 / 6)
    assert found["greedy"]["word_error_rate"] == pytest.approx(1 / 4)
    found = report(monkeypatch, [heard(0), wrong], unit="phones")
    assert found["greedy"] == {"phone_error_rate": pytest.approx(1 / 6)}
    assert "singer_probe" not in found  # nobody has two recordings


def test_a_ctc_loss_is_that_of_all_paths():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    scores = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    texts = [(0,), (0, 1), (1, 1)]
    found = recognition.ctc_losses(np.float32(logits), texts)
    for text, loss in zip(texts, found, strict=True):
        likelihood = 0.0
        for path in itertools.product(range(3), repeat=5):
            labels = tuple(n for n, _ in itertools.groupby(path) if n != 2)
            if labels == text:
                likelihood += np.exp(sum(scores[t, n] for t, n in enumerate(path)))
        assert loss == pytest.approx(-np.log(likelihood), rel=1e-4)


def weights_of(labels):
    import jax

    config = {
        "channels": 4,
        "wide_channels": 6,
        "num_labels": len(labels),
        "kernels": [4, 3],
        "wide_kernel": 3,
        "labels": list(labels),
    }
    network = builders.wav2letter(config)
    params = network.init(jax.random.key(0), np.zeros((1, 9, 39), np.float32))["params"]
    return Weights(params, "", "", config)


def test_any_wav2letter_is_measured_on_the_splits_that_are_not_train(tmp_path, capsys):
    import soundfile

    rng = np.random.default_rng(0)
    rows = ["path\tsplit\tspeaker\ttext"]
    for number in range(8):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * rng.normal(size=8000), 16000)
        split = "train" if number > 5 else "test"
        rows.append(f"{number}.wav\t{split}\t{number % 2}\ta{'b' * (number % 3)}")
    rows.append("missing.wav\ttest\tx\tab")
    table = tmp_path / "table.tsv"
    table.write_text("\n".join(rows) + "\n")
    found = evaluate_asr.evaluate(weights_of(["a", "b", "@"]), table)
    assert list(found) == ["test"]
    assert (found["test"]["recordings"], found["test"]["speakers"]) == (6, 2)
    assert 0 <= found["test"]["singer_probe"]["wide"] <= 1
    assert "left out missing.wav: no such recording" in capsys.readouterr().out

    with pytest.raises(UserError, match="no usable recording of a split other than"):
        evaluate_asr.evaluate(weights_of(["q", "@"]), table)
