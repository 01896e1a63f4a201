"""The entry point that makes a folder of a run, and what can be done with the folder."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile

from svc_jax import bundles, export, parity, programs, synthesis


@pytest.fixture(scope="module")
def model(model_workdir):
    return bundles.load(model_workdir)


def test_a_run_is_exported(start, model_workdir, tmp_path):
    output = tmp_path / "new" / "choir"
    stated = ["--license=CC0", "--consent=in writing", "--data=two hours of songs"]
    result = start(export, f"--workdir={model_workdir}", f"--output={output}", *stated)
    assert result == (0, f"wrote {output}\n", "")
    card = bundles.load(output).card
    assert [singer.name for singer in card.singers] == ["alto", "bass"]
    assert [p.name for p in output.parent.iterdir()] == ["choir"]
    text = (output / "README.md").read_text()
    assert text.startswith("# choir\n\nA singing voice conversion model")
    for said in (
        "CC0",
        "in writing",
        "two hours of songs",
        "| alto |",
        "| none yet |",
    ):
        assert said in text
    assert "Warning" not in text


def test_what_nobody_said_is_warned_of(start, model_workdir, tmp_path):
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"summary": {"all": {"vde": 0.0312, "mcd_db": None}}}))
    output = tmp_path / "choir"
    code, out, _ = start(
        export,
        f"--workdir={model_workdir}",
        f"--output={output}",
        f"--report={report}",
        "--dtype=bfloat16",
        "--no_frozen",
    )
    assert code == 0
    assert "bfloat16 differs from float32 by up to 0." in out
    assert out.count("warning: ") == 3
    text = (output / "README.md").read_text()
    assert text.count("**Warning: ") == 3
    assert "**Warning: no licence is stated" in text
    assert "| vde | 0.0312 |" in text
    assert "| mcd_db | none |" in text
    assert "- `frozen/wav2letter.safetensors`: put it there" in text
    # A card may be edited.
    (output / "README.md").write_text("ours")
    (output / "frozen").mkdir()
    (output / "frozen" / "wav2letter.safetensors").write_bytes(
        (model_workdir / "frozen" / "wav2letter.safetensors").read_bytes()
    )
    assert bundles.load(output).card.singers[0].name == "alto"


def test_what_cannot_be_exported_ends_with_one_line(start, dataset, tmp_path):
    for workdir in (tmp_path / "missing", dataset):
        output = tmp_path / "choir"
        code, out, err = start(export, f"--workdir={workdir}", f"--output={output}")
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {workdir}: no ")
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_report_that_is_none_is_refused(start, model_workdir, tmp_path):
    (tmp_path / "x.json").write_text("[]")
    flags = [f"--workdir={model_workdir}", f"--output={tmp_path / 'choir'}"]
    code, _, err = start(export, *flags, f"--report={tmp_path / 'x.json'}")
    assert code == 2
    assert err.startswith(
        f"error: {tmp_path / 'x.json'}: no report of svc_jax.evaluate"
    )
    assert not (tmp_path / "choir").exists()


# Programs.


@pytest.mark.parametrize("name", ["wavenet", "source_filter"])
def test_a_program_sings_any_length_in_any_voice(model_of, name):
    model = model_of(name)
    program = jax.export.deserialize(bytearray(programs.stablehlo(model)))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    # A length and a voice that were not compared when it was made.
    features, _, noise = parity.inputs(model, 11)
    weights = np.array([[0.2, 0.8]], np.float32)
    voice, _ = synthesis.voice_of(model, {"alto": 0.2, "bass": 0.8})
    found = program.call(
        features.f0_hz,
        features.loudness_db,
        features.asr_features,
        weights,
        noise.z,
        noise.excitation,
        noise.phase,
    )
    expected = np.asarray(parity.singing(model)(features, voice, noise))
    assert found.shape == expected.shape == (1, 11 * 320)
    assert np.abs(np.asarray(found) - expected).max() < 1e-4
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("name", ["wavenet", "source_filter"])
def test_a_graph_sings_any_length_in_any_voice(model_of, name):
    pytest.importorskip("jax2onnx")
    import onnxruntime

    model = model_of(name)
    session = onnxruntime.InferenceSession(programs.onnx(model))
    features, _, noise = parity.inputs(model, 11)
    voice, _ = synthesis.voice_of(model, {"alto": 0.2, "bass": 0.8})
    (found,) = session.run(
        ["audio"],
        {
            "f0_hz": features.f0_hz,
            "loudness_db": features.loudness_db,
            "asr_features": features.asr_features,
            "weights": np.array([[0.2, 0.8]], np.float32),
            "z": noise.z,
            "noise": noise.excitation,
            "phase": noise.phase,
        },
    )
    expected = np.asarray(parity.singing(model)(features, voice, noise))
    assert found.shape == expected.shape == (1, 11 * 320)
    assert np.abs(found - expected).max() < 1e-4


def test_a_graph_needs_jax2onnx(start, model_workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    flags = [f"--workdir={model_workdir}", f"--output={tmp_path / 'choir'}"]
    code, _, err = start(export, *flags, "--format=onnx")
    assert code == 2
    assert err.startswith("error: ONNX needs jax2onnx")
    assert "pip install --no-deps jax2onnx" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_a_program_that_sings_differently_is_refused(
    start, model_workdir, tmp_path, monkeypatch, form
):
    if form == "onnx":
        pytest.importorskip("jax2onnx")
    monkeypatch.setattr(parity, "distance", lambda *_: 2e-4)
    flags = [f"--workdir={model_workdir}", f"--output={tmp_path / 'choir'}"]
    code, _, err = start(export, *flags, f"--format={form}")
    assert code == 2
    assert err.startswith(f"error: generator.{form} would differ from the model by")
    assert not list(tmp_path.iterdir())


PROGRAM_ALONE = """
import sys
for name in ("flax", "svc_jax", "data_pipeline", "optax", "safetensors"):
    sys.modules[name] = None  # importing it fails
import jax.export, numpy as np, pathlib
program = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
given = np.load(sys.argv[2])
np.save(sys.argv[3], program.call(*(given[str(n)] for n in range(7))))
"""

OFFLINE = """
import socket, sys
for name in ("tensorflow", "tensorflow_datasets", "apache_beam", "tensorboardX",
             "librosa", "pyloudnorm", "matplotlib", "torch", "torchcrepe", "crepe"):
    sys.modules[name] = None
def refuse(*_):
    raise OSError("no network")
socket.socket.connect = refuse
from svc_jax import convert
sys.argv = ["convert", *sys.argv[1:]]
convert.run()
"""


def test_an_export_needs_neither_extras_nor_network(
    start, model, model_workdir, tmp_path
):
    folder = tmp_path / "choir"
    flags = [f"--workdir={model_workdir}", f"--output={folder}", "--format=stablehlo"]
    assert start(export, *flags)[0] == 0

    def run(program, *arguments):
        child = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
        )
        assert child.returncode == 0, child.stderr

    turns = 220 * np.arange(4000) / 16_000
    soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(2 * np.pi * turns), 16_000)
    run(
        OFFLINE,
        f"--model={folder}",
        "--singer=alto",
        f"--output={tmp_path}/out",
        tmp_path / "a.wav",
    )
    assert soundfile.info(tmp_path / "out" / "a.wav").frames == 4000

    features, voice, noise = parity.inputs(model, 5)
    weights = np.full((1, 2), 0.5, np.float32)
    given = (*jax.tree.leaves(features), weights, *jax.tree.leaves(noise))
    np.savez(tmp_path / "x.npz", **{str(n): x for n, x in enumerate(given)})
    program = folder / "generator.stablehlo"
    run(PROGRAM_ALONE, program, tmp_path / "x.npz", tmp_path / "y.npy")
    expected = parity.singing(model)(features, voice, noise)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-4)
