"""Tables of recordings with transcripts, and their batches."""

import collections
import itertools

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import transcripts
from svc_jax.errors import UserError

SECOND = transcripts.SAMPLE_RATE
HEADER = "path\tsplit\tspeaker\ttext\tphones"


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def utterance(number: int, seconds: float, num_labels: int) -> transcripts.Utterance:
    """One that is recognised in a batch by its number."""
    audio = np.full(round(seconds * SECOND), number, np.int16)
    labels = np.full(num_labels, number, np.int32)
    return transcripts.Utterance(f"{number}.wav", "x", audio, labels)


def spoken(count: int = 11) -> list[transcripts.Utterance]:
    return [utterance(n, 0.31 * n, 2 + n % 5) for n in range(1, count + 1)]


# Tables.


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("text\tpath\tspeaker\tsplit\nlä la\ta.wav\tanna\ttrain\n", "utf-8")
    (row,) = transcripts.read_table(path)
    wanted = {"text": "lä la", "path": "a.wav", "speaker": "anna", "split": "train"}
    assert row == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks the columns path, speaker, split, text"),
        ("path,split,speaker,text\n", "lacks the columns path, speaker, split, text"),
        ("path\ttext\tspeaker\n", "lacks the columns split"),
        (f"{HEADER}\na\tb\tc\td\te\na\tb\tc\n", "line 3 has 3 cells, the first line 5"),
        (f"{HEADER}\n\na\tb\tc\td\te\n", "line 2 has 1 cells, the first line 5"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, text, said):
    path = tmp_path / "table.tsv"
    path.write_text(text)
    assert refusal(transcripts.read_table, path).startswith(f"{path}: {said}")


def test_missing_table_is_refused(tmp_path):
    line = refusal(transcripts.read_table, tmp_path / "table.tsv")
    assert line.startswith(f"{tmp_path / 'table.tsv'}: no such table")


# Labels.


def test_labels_are_phones_or_letters():
    row = {"text": "La lá", "phones": "L AA L AH"}
    assert transcripts.tokens(row, "phones") == ["L", "AA", "L", "AH"]
    assert transcripts.tokens(row, "letters") == ["l", "a", " ", "l", "á"]
    rows = [{**row, "split": "train"}, {"split": "train", "text": "b", "phones": "B"}]
    rows.append({"split": "test", "text": "x", "phones": "X"})
    assert transcripts.alphabet(rows, "phones") == ("AA", "AH", "B", "L")
    assert transcripts.alphabet(rows, "letters") == (" ", "a", "b", "l", "á")
    assert transcripts.alphabet(rows, "phones", "B L") == ("B", "L")
    assert transcripts.alphabet(rows, "letters", "b ") == ("b", " ")


def test_labels_that_are_not_there_are_refused():
    line = refusal(transcripts.tokens, {"text": "la"}, "phones")
    assert "no column phones" in line
    assert "--config.data.unit=letters" in line
    line = refusal(transcripts.tokens, {"text": "la"}, "words")
    assert line == "config.data.unit is 'words'; choose phones or letters."


# Recordings.


def test_recordings_are_loaded_by_split_and_what_is_left_out_is_counted(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    pcm = np.arange(-2000, 2000, dtype=np.int16)
    soundfile.write(folder / "good.wav", pcm, SECOND)
    soundfile.write(folder / "stereo.flac", np.stack([pcm, pcm], 1), 2 * SECOND)
    soundfile.write(folder / "silent.wav", np.zeros(4000), SECOND)
    rows = [
        ("good.wav", "train", "A B"),
        ("stereo.flac", "train", "B"),
        ("good.wav", "test", "B A"),
        ("good.wav", "train", ""),
        ("good.wav", "train", "A C"),
        ("silent.wav", "train", "A"),
        ("missing.wav", "train", "A"),
        # 4000 samples are 12 frames; a blank must stand between equal labels.
        ("good.wav", "train", "A B A B A B A B A B A B"),
        ("good.wav", "train", "A A A A A A A"),
    ]
    lines = [f"{path}\t{split}\tx\t\t{phones}" for path, split, phones in rows]
    (folder / "table.tsv").write_text("\n".join([HEADER, *lines]) + "\n")

    soundfile.write(folder / "untold.wav", pcm, SECOND)
    found, table = transcripts.read(folder / "table.tsv")
    assert found == folder
    splits, left_out = transcripts.load(folder, table, "phones", ("A", "B"))
    first, second, longest = splits.pop("train")
    (test,) = splits.pop("test")
    assert not splits
    np.testing.assert_array_equal(first.audio, pcm)
    np.testing.assert_array_equal(first.labels, [0, 1])
    assert (first.path, first.speaker) == ("good.wav", "x")
    assert second.audio.shape == (2000,)
    np.testing.assert_array_equal(test.labels, [1, 0])
    assert longest.labels.size == 12
    silent = f"unusable recording: {folder / 'silent.wav'}: every sample is zero"
    assert left_out[:2] == [
        ("good.wav", "empty transcript"),
        ("good.wav", "labels outside the alphabet: C"),
    ]
    assert left_out[2][0] == "silent.wav" and left_out[2][1].startswith(silent)
    assert left_out[3:] == [
        ("missing.wav", "no such recording"),
        ("good.wav", "more labels than frames"),
        ("untold.wav", "no transcript"),
    ]
    listed = tmp_path / "run" / "left_out.tsv"
    transcripts.write_left_out(listed, left_out[:1])
    assert listed.read_text() == "path\treason\ngood.wav\tempty transcript\n"


def test_librispeechs_layout_is_read(tmp_path):
    chapter = tmp_path / "train-clean-100" / "19" / "198"
    chapter.mkdir(parents=True)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n")
    other = tmp_path / "test-clean" / "61" / "70"
    other.mkdir(parents=True)
    (other / "61-70.trans.txt").write_text("61-70-0000 HE\n61-70-0001 SHE\n")
    folder, rows = transcripts.read(tmp_path)
    assert folder == tmp_path
    assert [tuple(row.values()) for row in rows] == [
        ("test-clean/61/70/61-70-0000.flac", "test-clean", "61", "HE"),
        ("test-clean/61/70/61-70-0001.flac", "test-clean", "61", "SHE"),
        (
            "train-clean-100/19/198/19-198-0000.flac",
            "train",
            "19",
            "NORTHANGER ABBEY",
        ),
    ]


def test_a_folder_without_transcripts_is_refused(tmp_path):
    line = refusal(transcripts.read, tmp_path)
    assert line.startswith(f"{tmp_path}: holds no <subset>/<speaker>/<chapter>")


# Batches.


def test_a_batch_is_padded_with_zeros():
    batch = transcripts.pad_batch(
        [utterance(3, 1 / SECOND, 2), utterance(5, 2 / SECOND, 1)], 4, 3
    )
    level = np.array([[3, 0, 0, 0], [5, 5, 0, 0]], np.float32) / 32767
    np.testing.assert_array_equal(batch["audio"], level)
    np.testing.assert_array_equal(batch["num_samples"], [1, 2])
    np.testing.assert_array_equal(batch["labels"], [[3, 3, 0], [5, 0, 0]])
    np.testing.assert_array_equal(batch["num_labels"], [2, 1])
    types = {name: value.dtype.name for name, value in batch.items()}
    assert types.pop("audio") == "float32"
    assert set(types.values()) == {"int32"}


@given(
    samples=st.lists(st.integers(1, 5 * SECOND), min_size=1, max_size=20),
    batch_seconds=st.floats(0.1, 30),
    max_buckets=st.integers(1, 6),
)
def test_buckets_hold_every_utterance_once(samples, batch_seconds, max_buckets):
    utterances = [
        utterance(n, size / SECOND, 1 + n % 3) for n, size in enumerate(samples)
    ]
    groups = transcripts.buckets(utterances, batch_seconds, max_buckets)
    assert len(groups) <= max_buckets
    held = [u.path for members, *_ in groups for u in members]
    assert sorted(held) == sorted(u.path for u in utterances)
    for members, size, num_samples, num_labels in groups:
        longest = max(u.audio.size for u in members)
        assert longest <= num_samples < longest + SECOND
        assert num_samples % SECOND == 0
        assert num_labels == max(u.labels.size for u in members)
        assert 1 <= size <= len(members)
        assert size == 1 or size * num_samples <= batch_seconds * SECOND
    for (shorter, *_), (longer, *_) in itertools.pairwise(groups):
        assert max(u.audio.size for u in shorter) <= min(u.audio.size for u in longer)


NONE = transcripts.Perturbation()
FAR = transcripts.Perturbation(pitch=1.25, formants=1.15, speed=1.2)


def batches(
    first_step: int,
    count: int,
    seed: int = 0,
    perturbation=NONE,
    **sharding,
) -> list[dict]:
    stream = transcripts.train_batches(
        spoken(),
        batch_seconds=8.0,
        max_buckets=3,
        perturbation=perturbation,
        seed=seed,
        first_step=first_step,
        **sharding,
    )
    return list(itertools.islice(stream, count))


def test_a_training_batch_is_a_function_of_seed_and_step():
    whole = batches(0, 12, perturbation=FAR)
    resumed = batches(5, 7, perturbation=FAR)
    for batch, uninterrupted in zip(resumed, whole[5:], strict=True):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, uninterrupted[name])
    others = batches(0, 12, seed=1, perturbation=FAR)
    assert any(a["audio"].shape != b["audio"].shape for a, b in zip(whole, others))


def test_training_batches_are_of_few_shapes_and_of_different_utterances():
    seen = collections.Counter()
    for batch in batches(0, 60):
        numbers = batch["labels"][:, 0]
        assert len(set(numbers)) == len(numbers)
        seen.update(numbers.tolist())
        np.testing.assert_array_equal(batch["num_labels"], 2 + numbers % 5)
    assert set(seen) == set(range(1, 12))
    assert len({batch["audio"].shape for batch in batches(0, 60)}) == 3


def test_evaluation_reads_every_utterance_once_in_full_batches():
    seen = []
    groups = transcripts.buckets(spoken(), 9.0, 2)
    shapes = {(size, samples) for _, size, samples, _ in groups}
    for batch, members in transcripts.eval_batches(
        spoken(), batch_seconds=9.0, max_buckets=2
    ):
        assert batch["audio"].shape in shapes
        numbers = batch["labels"][: len(members), 0].tolist()
        assert numbers == [utterance.labels[0] for utterance in members]
        seen += numbers
    assert sorted(seen) == list(range(1, 12))


def test_hosts_read_disjoint_parts_of_one_batch():
    whole = batches(0, 6, perturbation=FAR, num_devices=4)
    hosts = [
        batches(0, 6, perturbation=FAR, num_devices=4, shard_index=n, shard_count=2)
        for n in range(2)
    ]
    for batch, *parts in zip(whole, *hosts, strict=True):
        assert len(batch["audio"]) % 4 == 0
        for name, value in batch.items():
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, value)


# Perturbation.


def test_without_limits_a_recording_stays_as_it_is():
    said = utterance(2, 1.0, 4)
    found, warp, speed = transcripts.perturb(
        said, NONE, SECOND, np.random.default_rng(0)
    )
    assert found is said
    assert (warp, speed) == (1.0, 1.0)


@given(
    seed=st.integers(0, 2**32 - 1),
    seconds=st.floats(0.2, 3.0),
    room=st.floats(1.0, 1.5),
    num_labels=st.integers(1, 8),
)
def test_a_perturbed_recording_keeps_to_its_limits(seed, seconds, room, num_labels):
    rng = np.random.default_rng(seed)
    samples = round(seconds * SECOND)
    pcm = rng.integers(-99, 99, samples).astype(np.int16)
    said = transcripts.Utterance("a", "x", pcm, np.arange(num_labels))
    most = int(samples * room)
    found, warp, speed = transcripts.perturb(said, FAR, most, rng)
    assert found.audio.size <= most
    pitch = samples / found.audio.size
    assert 1 / 1.25 - 0.01 <= pitch <= 1.25 + 0.01
    assert 1 / 1.15 - 0.01 <= warp * pitch <= 1.15 + 0.01
    assert 1 / 1.2 - 0.01 <= speed * pitch <= 1.2 + 0.01
    # In the padded batch there is room for the stretched frames, and CTC has enough.
    num_frames = 1 + int((found.audio.size // 160) / speed)
    assert num_frames <= 1 + most // 160 + 1
    assert (num_frames + 1) // 2 >= num_labels


def test_pitch_is_perturbed_by_resampling():
    time = np.arange(2 * SECOND) / SECOND
    pcm = np.round(9000 * np.sin(2 * np.pi * 400 * time)).astype(np.int16)
    said = transcripts.Utterance("a", "x", pcm, np.arange(3))
    heard = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        far = transcripts.Perturbation(pitch=1.25)
        found, warp, speed = transcripts.perturb(said, far, 3 * SECOND, rng)
        spectrum = np.abs(np.fft.rfft(found.audio * np.hanning(found.audio.size)))
        hz = spectrum.argmax() * SECOND / found.audio.size
        # Formants and speed are to be put back by the front end.
        assert hz * warp == pytest.approx(400, rel=0.01)
        assert hz * speed == pytest.approx(400, rel=0.01)
        heard.append(hz)
    assert min(heard) < 340 and max(heard) > 460
