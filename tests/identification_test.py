"""Who sings is told from real recordings, and from nothing else."""

import numpy as np
import pytest
import scipy.signal
import soundfile

from svc_jax import identification
from svc_jax.errors import UserError

FORMANTS = {"anna_1": 600.0, "anna_2": 1500.0, "bert_1": 3000.0}


def voice(name: str, seed: int, hz: float = 200.0, seconds: float = 2.0):
    """A pulse train with a formant of its singer's, a little noise, and a pause."""
    rng = np.random.default_rng(seed)
    audio = np.zeros(round(16_000 * seconds))
    audio[:: round(16_000 / hz)] = 1.0
    audio += 0.02 * rng.standard_normal(audio.size)
    formant = FORMANTS[name] * rng.uniform(0.97, 1.03)
    radius = 0.95
    pole = radius * np.exp(2j * np.pi * formant / 16_000)
    audio = scipy.signal.lfilter([0.1], np.poly([pole, pole.conj()]).real, audio)
    return np.float32(np.concatenate([audio, np.zeros(4000)]))


@pytest.fixture(scope="module")
def identifier() -> identification.Identifier:
    sung = list(enumerate((140, 160, 180, 200, 240, 280, 320)))
    return identification.fit(
        {name: [voice(name, seed, hz) for seed, hz in sung] for name in FORMANTS},
        16_000,
    )


@pytest.mark.parametrize("name", FORMANTS)
def test_a_singer_is_known_at_another_pitch_and_level(identifier, name):
    audio = 0.2 * voice(name, seed=9, hz=220.0)
    told = identifier.tell(audio, 16_000, name)
    assert (told["identified"], told["nearest_centroid"]) == (1, 1)
    assert told["cosine"] > 0.3
    other = "anna_1" if name == "bert_1" else "bert_1"
    told = identifier.tell(audio, 16_000, other)
    assert (told["identified"], told["nearest_centroid"]) == (0, 0)


def test_pauses_are_not_heard():
    audio = voice("anna_1", 0)
    longer = np.concatenate([np.zeros(30_000, np.float32), audio])
    one, other = (identification.prints(x, 16_000) for x in (audio, longer))
    assert one.shape == other.shape == (1, 48)
    np.testing.assert_allclose(other, one, atol=0.2)


def test_within_a_corpus_others_are_not_named(identifier):
    audio = voice("bert_1", seed=9)
    told = identifier.tell(audio, 16_000, "anna_1", ["anna_*", "bert_*"])
    assert told["identified"] == 0
    told = identifier.tell(audio, 16_000, "bert_1", ["anna_*", "bert_*"])
    assert told["identified_in_corpus"] == 1  # there is nobody else
    found = identification.in_corpus(identifier.names, "anna_2", ["anna_*", "bert_*"])
    assert found.tolist() == [True, True, False]
    assert identification.in_corpus(identifier.names, "anna_2", ["carl*"]).all()


def test_of_a_singer_it_does_not_know_nothing_is_told(identifier):
    told = identifier.tell(voice("anna_1", 9), 16_000, "carl", ["anna_*"])
    assert set(told) == {
        "identified",
        "identified_in_corpus",
        "nearest_centroid",
        "cosine",
    }
    assert np.isnan(list(told.values())).all()


def test_one_singer_is_refused():
    with pytest.raises(
        UserError, match="recordings of anna_1: who sings is told among"
    ):
        identification.fit({"anna_1": [voice("anna_1", 0)]}, 16_000)


def test_a_folders_recordings_are_split_by_file(tmp_path):
    for name, count in (("anna_1", 6), ("anna_2", 2), ("bert_1", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            audio = np.full(100 + number, 0.1, np.float32)
            soundfile.write(tmp_path / name / f"{number}.wav", audio, 16_000)
    found = identification.from_folder(tmp_path, 16_000)
    fitted = {name: [a.size for a in own] for name, own in found.fitted.items()}
    held = {name: [a.size for a in own] for name, own in found.held_out.items()}
    assert fitted == {
        "anna_1": [100, 101, 102, 103, 105],
        "anna_2": [100],
        "bert_1": [100],
    }
    assert held == {"anna_1": [104], "anna_2": [101]}


def test_a_dataset_gives_its_training_and_its_validation_records(dataset):
    found = identification.from_dataset(dataset)
    assert set(found.fitted) == set(found.held_out) == {"alto", "bass"}
    assert len(found.held_out["alto"]) == 1
    assert all(np.abs(audio).max() > 0.01 for audio in found.held_out["alto"])


def test_it_is_put_to_real_recordings_that_were_held_out():
    fitted = {
        name: [voice(name, n, 180.0 + 20 * n) for n in range(4)] for name in FORMANTS
    }
    held_out = {"anna_2": [voice("anna_2", 9, 200.0)], "carl": [voice("anna_1", 9)]}
    _, about = identification.learn(
        identification.Recordings(fitted, held_out), 16_000, ["anna_*"]
    )
    assert (about["num_fitted"], about["num_held_out"]) == (12, 1)
    assert about["held_out"]["identified"] == 1
    assert about["held_out"]["identified_in_corpus"] == 1


def test_without_recordings_it_is_said(dataset, capsys, tmp_path):
    for data_dir in ("", tmp_path):
        assert identification.real_recordings(None, data_dir, 16_000) is None
        assert "name recordings by --singers_from" in capsys.readouterr().out
    found = identification.real_recordings(None, dataset, 16_000)
    assert set(found.fitted) == {"alto", "bass"}
