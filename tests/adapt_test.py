"""The entry point that adds a voice: from recordings to a folder that converts."""

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from svc_jax import adapt, adaptation, bundles, convert, evaluate, model_card


@pytest.fixture
def short(monkeypatch):
    """Adapting in few steps."""
    for name in ("MIXTURE", "VOICE", "FINETUNE"):
        stage = dataclasses.replace(getattr(adaptation, name), num_steps=10)
        monkeypatch.setattr(adaptation, name, stage)


@pytest.fixture
def voice(recordings, tmp_path):
    """A folder of a singer's songs, 4.5 s, among them what is none."""
    folder = tmp_path / "voice"
    folder.mkdir()
    for path in (recordings / "alto").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


def flags_for(model, voice, output, name="me") -> list[str]:
    return [
        f"--model={model}",
        f"--input={voice}",
        f"--name={name}",
        f"--output={output}",
    ]


def test_a_voice_is_added(start, short, model_workdir, voice, tmp_path):
    output = tmp_path / "models" / "choir+me"
    stated = ["--license=CC0", "--consent=mine", "--data=songs"]
    code, out, err = start(adapt, *flags_for(model_workdir, voice, output), *stated)
    assert code == 0
    assert err.startswith(f"left out: {voice / 'broken.wav'}: ")
    assert "  by me\n" in out
    assert f"wrote {output}\n" in out
    assert out.count("warning: ") == 2  # of the other voices nothing is known
    before, after = bundles.load(model_workdir), bundles.load(output)
    assert [s.name for s in after.card.singers] == ["alto", "bass", "me"]
    assert after.card.singers[2].minutes == pytest.approx(4.5 / 60, rel=0.2)
    audio, rate = soundfile.read(voice / "one.wav")
    for name in ("alto", "bass"):
        np.testing.assert_array_equal(
            before.convert(audio, rate, name), after.convert(audio, rate, name)
        )
    text = (output / "README.md").read_text()
    assert "| me | 0.1 |" in text
    assert "| L_recon of me by me |" in text

    # Whoever reads models reads this one.
    flags = [f"--model={output}", f"--output={tmp_path / 'out'}"]
    assert start(convert, *flags, "--singer=me", voice / "one.wav")[0] == 0
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "one.wav").symlink_to(voice / "one.wav")
    assert start(evaluate, *flags, f"--sources={sources}", "--singers=me")[0] == 0
    twice = flags_for(output, voice, tmp_path / "models" / "two", name="you")
    assert start(adapt, *twice, "--finetune")[0] == 0
    names = [s.name for s in bundles.load(tmp_path / "models" / "two").card.singers]
    assert names == ["alto", "bass", "me", "you"]


def test_what_cannot_be_adapted_ends_with_one_line(
    start, model_workdir, voice, dataset, tmp_path
):
    empty, broken, short = tmp_path / "empty", tmp_path / "broken", tmp_path / "short"
    for folder in (empty, broken, short):
        folder.mkdir()
    (broken / "broken.wav").write_bytes(b"RIFF")
    turns = 220 * np.arange(6000) / 16_000
    soundfile.write(short / "a.wav", 0.3 * np.sin(2 * np.pi * turns), 16_000)
    there, output = sorted(p.name for p in tmp_path.iterdir()), tmp_path / "new"
    below_a_file = voice / "one.wav" / "new"
    missing = tmp_path / "missing"
    cases = {
        f"{voice}: exists; remove it": (model_workdir, voice, voice, "me"),
        f"{below_a_file}: cannot be written": (
            model_workdir,
            voice,
            below_a_file,
            "me",
        ),
        f"{missing}: no such folder; --model": (missing, voice, output, "me"),
        f"{dataset}: no config.json": (dataset, voice, output, "me"),
        "--name 'alto': the model knows alto, bass": (
            model_workdir,
            voice,
            output,
            "alto",
        ),
        "--name 'a,b': take a plain word": (model_workdir, voice, output, "a,b"),
        "--name ' ': take a plain word": (model_workdir, voice, output, " "),
        f"{missing}: no such folder; --input": (model_workdir, missing, output, "me"),
        f"{empty}: holds no audio files": (model_workdir, empty, output, "me"),
        f"none of 1 recordings is usable; the first: {broken}": (
            model_workdir,
            broken,
            output,
            "me",
        ),
        "--input holds 0.2 s of voice; 0.6 s": (model_workdir, short, output, "me"),
    }
    for expected, case in cases.items():
        model, source, target, name = case
        code, out, err = start(adapt, *flags_for(model, source, target, name))
        assert (code, out) == (2, ""), expected
        assert err.startswith(f"error: {expected}"), err
        assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == there


def test_a_model_of_one_singer_is_refused(start, model_workdir, monkeypatch, voice):
    model = bundles.load(model_workdir)
    card = dataclasses.replace(model.card, singers=model.card.singers[:1])
    alone = dataclasses.replace(model, card=card)
    monkeypatch.setattr(bundles, "load", lambda _: alone)
    code, _, err = start(adapt, *flags_for(model_workdir, voice, voice / "new"))
    assert code == 2
    assert err.startswith("error: a model of one singer, alto, has no room for another")


KILLED_WHILE_LEARNING = """
import sys, time
from svc_jax import adapt, adaptation
def learn(*_, **__):
    print("learning", flush=True)
    time.sleep(600)
adaptation.learn = learn
sys.argv = ["adapt", *sys.argv[1:]]
adapt.run()
"""


def test_a_kill_leaves_nothing(model_workdir, voice, tmp_path):
    output = tmp_path / "models" / "new"
    flags = flags_for(model_workdir, voice, output)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_LEARNING, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "learning\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["voice"]


def test_a_card_says_what_is_known_of_all_voices(model_workdir, tmp_path):
    known = model_card.Statement("CC BY", "in writing", "")
    model = bundles.load(model_workdir)
    text = model_card.text(model, "choir", known, {}, {})
    (tmp_path / "README.md").write_text(text)
    assert model_card.read(tmp_path) == known
    assert model_card.read(model_workdir) == model_card.Statement()
    new = model_card.Statement("", "mine", "songs")
    assert model_card.joined(known, new, "me") == model_card.Statement(
        "CC BY", "in writing; me: mine", ""
    )
