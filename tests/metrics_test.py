"""What a run tells: lines, TensorBoard, pictures, and the alarm."""

import contextlib
import io
import json
import sys

import jax
import numpy as np
import pytest
import soundfile
from tensorboardX.proto import event_pb2

from data_pipeline import input_pipeline
from svc_jax import metrics


def summaries(workdir) -> dict:
    """Summary values of the event files: (tag, step) -> value."""
    found = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()  # an event file is a TFRecord file
        for offset, length in input_pipeline.record_offsets(path):
            event = event_pb2.Event.FromString(content[offset : offset + length])
            for value in event.summary.value:
                found[value.tag, event.step] = value
    return found


def test_what_is_not_finite_is_null_in_a_line(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        writer.scalars(1, {"loss/a": np.nan, "loss/b": -np.inf, "loss/c": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    assert (line["loss/a"], line["loss/b"], line["loss/c"]) == (None, None, 1.0)


def test_scalars_are_lines_of_json_and_on_the_board(tmp_path):
    with metrics.Writer(tmp_path / "run") as writer:
        writer.scalars(1, {"loss/a": np.float32(0.5), "loss/b": jax.numpy.float32(2)})
        writer.scalars(2, {"loss/a": 0.25})
        # Written at once: a killed run keeps its lines.
        text = (tmp_path / "run" / "metrics.jsonl").read_text()
    first, second = (json.loads(line) for line in text.splitlines())
    assert (first["step"], first["loss/a"], first["loss/b"]) == (1, 0.5, 2.0)
    assert (second["step"], second["loss/a"]) == (2, 0.25)
    assert first["time"] <= second["time"]
    board = {key: v.simple_value for key, v in summaries(tmp_path / "run").items()}
    assert board == {("loss/a", 1): 0.5, ("loss/b", 1): 2.0, ("loss/a", 2): 0.25}


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path):
    for step in (1, 2):
        with metrics.Writer(tmp_path) as writer:
            writer.scalars(step, {"loss/a": step})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_run_that_fails_closes_its_files(tmp_path):
    with pytest.raises(FloatingPointError), metrics.Writer(tmp_path) as writer:
        writer.scalars(1, {"loss/a": 0.5})
        raise FloatingPointError
    with pytest.raises(ValueError, match="closed file"):
        writer.scalars(2, {"loss/a": 0.5})
    assert ("loss/a", 1) in summaries(tmp_path)


def test_audio_is_on_the_board_with_its_picture(tmp_path):
    audio = (2 * np.sin(np.arange(4000) / 5)).astype(np.float32)
    with metrics.Writer(tmp_path) as writer:
        writer.audio(7, "conversion", audio, 16_000)
    board = summaries(tmp_path)
    sound = board["conversion", 7].audio
    heard, sample_rate = soundfile.read(io.BytesIO(sound.encoded_audio_string))
    assert sample_rate == sound.sample_rate == 16_000
    np.testing.assert_allclose(heard, np.clip(audio, -1, 1), atol=1e-3)
    assert board["spectrogram/conversion", 7].image.height == 513


def test_what_clips_is_shown_as_it_is_heard(tmp_path):
    audio = (2 * np.sin(np.arange(4000) / 5)).astype(np.float32)
    with metrics.Writer(tmp_path) as writer:
        writer.audio(1, "loud", audio, 16_000)
        writer.audio(2, "loud", audio.clip(-1, 1), 16_000)
        writer.audio(3, "loud", audio / 2, 16_000)
    board = summaries(tmp_path)
    loud, clipped, soft = (
        board["spectrogram/loud", step].image.encoded_image_string for step in (1, 2, 3)
    )
    assert loud == clipped != soft


def test_only_the_first_process_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with metrics.Writer(tmp_path / "run") as writer:
        writer.scalars(1, {"loss/a": 0.5})
        writer.audio(1, "source", np.zeros(1000, np.float32), 16_000)
        assert list(metrics.progress(0, 3, writer)) == [0, 1, 2]
        metrics.say("trained")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_progress_goes_on_where_the_run_does_and_shows_the_newest_losses(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with metrics.Writer(tmp_path) as writer:
        for step in metrics.progress(4, 10, writer):
            values = {"loss/spectral": 0.12345 * step, "learning_rate/generator": 1e-4}
            writer.scalars(step + 1, values)
    shown = capsys.readouterr().err
    assert "4/10" in shown
    assert "10/10" in shown
    assert "spectral=1.111" in shown.splitlines()[-1]
    assert "learning_rate" not in shown
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 6, 7, 8, 9, 10]


def test_what_is_said_is_a_line_of_its_own(capsys):
    metrics.say("label error rate 12.0%")
    assert "label error rate 12.0%" in capsys.readouterr().out.splitlines()


def test_the_clock_shares_out_the_time_of_the_steps(monkeypatch):
    now = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    clock = metrics.StepClock()
    for _ in range(4):
        with clock.part("input"):
            now += 0.5
        now += 2.0
    with clock.part("save"):
        now += 1.0
    with clock.part("evaluate"):
        now += 3.0
    found = clock.scalars(audio_seconds=7.0)
    assert {k: v for k, v in found.items() if not k.startswith("memory/")} == {
        "time/input": 0.5,
        "time/compute": 2.0,
        "time/save": 0.25,
        "time/evaluate": 0.75,
        "time/total": 3.5,
        "speed/audio_seconds": 2.0,
    }
    # The next shares are of the next steps.
    with clock.part("input"):
        now += 1.0
    found = clock.scalars(7.0)
    assert found["time/input"] == found["time/total"] == 1.0


@pytest.mark.parametrize(
    ("first", "last", "expected"), [(2, 4, [2, 3, 4]), (0, 0, [0]), (None, None, [])]
)
def test_the_steps_that_are_asked_for_are_traced(
    tmp_path, monkeypatch, first, last, expected
):
    running = []

    @contextlib.contextmanager
    def trace(folder):
        running.append(folder)
        yield
        running.clear()

    monkeypatch.setattr(jax.profiler, "trace", trace)
    traced = {
        step: list(running)
        for step in metrics.profiled(iter(range(6)), tmp_path, first, last)
    }
    assert list(traced) == [0, 1, 2, 3, 4, 5]
    assert [step for step, folders in traced.items() if folders] == expected


def test_a_trace_is_written(tmp_path):
    for _ in metrics.profiled(iter(range(2)), tmp_path, 1, 1):
        jax.block_until_ready(jax.numpy.ones(3) + 1)
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32("nan")])
def test_a_value_that_is_not_finite_stops_the_run_by_name(value):
    metrics.check_finite(3, {"loss/a": 1.0, "loss/b": np.float32(-1e30)})
    with pytest.raises(FloatingPointError, match=r"loss/b is -?(nan|inf) at step 3"):
        metrics.check_finite(3, {"loss/a": 1.0, "loss/b": value, "loss/c": np.nan})


@pytest.mark.parametrize(("amplitude", "bin_"), [(1.0, 40), (0.1, 300)])
def test_spectrogram_shows_a_tone_at_its_pitch_and_level(amplitude, bin_):
    audio = amplitude * np.sin(2 * np.pi * bin_ / 1024 * np.arange(8000))
    level = metrics.spectrogram_db(audio)
    assert level.shape == (513, 1 + 8000 // 256)
    middle = level[:, 8]
    assert np.argmax(middle) == bin_
    # A sine under a window: half its amplitude times the window's sum.
    expected = 20 * np.log10(amplitude / 2 * np.hanning(1024).sum())
    assert middle[bin_] == pytest.approx(expected, abs=0.1)
    assert middle[bin_ + 20] < expected - 80


def test_picture_has_low_pitches_at_the_bottom_and_silence_black():
    low_tone = np.sin(2 * np.pi * 20 / 1024 * np.arange(4000))
    picture = metrics.spectrogram_image(np.concatenate([low_tone, np.zeros(4000)]))
    assert picture.dtype == np.uint8
    assert picture.shape == (513, 1 + 8000 // 256, 3)
    assert (picture[..., 0] == picture[..., 2]).all()
    rows, columns = np.nonzero(picture[..., 0] == picture.max())
    assert (rows > 480).all()
    assert (columns < 20).all()
    assert not picture[:, 20:].any()
