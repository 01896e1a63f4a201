"""Models as a whole: from a workdir, from an export, and with pieces amiss."""

import dataclasses
import errno
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

import svc_jax
from data_pipeline import schema
from svc_jax import (
    audio_files,
    bundles,
    checkpoints,
    published,
    steps,
    synthesis,
    weight_files,
)
from svc_jax.errors import UserError
from svc_jax.models.crepe import Crepe

FILES = [
    "config.json",
    "frozen/wav2letter.safetensors",
    "params.safetensors",
    "singers.json",
]


@pytest.fixture(scope="module")
def model(model_workdir) -> bundles.Model:
    return bundles.load(model_workdir)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model, model_workdir):
    """An export of the run; for reading."""
    folder = tmp_path_factory.mktemp("models") / "choir"
    bundles.save(model, model_workdir, folder)
    return folder


@pytest.fixture
def altered(exported, tmp_path):
    """A copy of the export, to be spoilt."""
    return shutil.copytree(exported, tmp_path / "model")


def seal(folder):
    """Makes the hashes of a spoilt export those of its files."""
    config = json.loads((folder / "config.json").read_text())
    config["export"]["sha256"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in files_below(folder)
        if name not in ("config.json", "README.md")
    }
    checkpoints.write_json(folder / "config.json", config)


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_below(folder) -> list[str]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p.relative_to(folder).as_posix() for p in paths)


def assert_equal_trees(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def song(num_samples: int = 4000) -> np.ndarray:
    turns = 220 * np.arange(num_samples) / 16_000
    audio = sum(0.3 / k * np.sin(2 * np.pi * k * turns + 0.4) for k in range(1, 6))
    return audio.astype(np.float32)


def sung(model, singer: str = "bass") -> np.ndarray:
    return synthesis.convert(model, song(), {singer: 1.0}, seed=1)[0]


# Workdirs.


def test_a_workdir_gives_the_running_mean_of_its_newest_checkpoint(
    model, model_workdir, tmp_path
):
    # As the fixture made it: the newest parameters are those of key 1.
    def fresh(key):
        rng_generator, _ = jax.random.split(key)
        return steps.init_generator(model.generator, model.extractor, rng_generator)

    mean = jax.jit(fresh)(jax.random.key(2))
    newest = jax.jit(fresh)(jax.random.key(1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        model.params,
        mean,
    )
    embedding = model.params["singers"]["embedding"]
    assert np.abs(embedding - newest["singers"]["embedding"]).max() > 0.1


def test_a_model_is_all_that_converting_needs(model, model_workdir, tiny_config):
    assert model.card == schema.Card.read(model_workdir)
    assert model.config.generator.to_dict()["name"] == "wavenet"
    assert model.config.num_steps == tiny_config().num_steps
    assert model.generator.num_singers == 2
    assert model.extractor.crepe is None
    assert model.frozen.crepe is None
    assert model.extractor.asr_size == 12
    assert model.extractor.f0_hop == 160
    audio = sung(model)
    assert audio.shape == (4000,)
    assert np.abs(audio).max() > 0.01


def test_a_run_without_checkpoint_is_refused_and_left_alone(model_workdir, tmp_path):
    shutil.copytree(model_workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = files_below(tmp_path)
    line = refusal(bundles.load, tmp_path / "run")
    said = "holds neither params.safetensors nor a checkpoint; train, or export again."
    assert line == f"{tmp_path / 'run'}: {said}"
    assert files_below(tmp_path) == before
    assert not (tmp_path / "run" / "checkpoints").exists()
    (tmp_path / "run" / "checkpoints").mkdir()
    assert refusal(bundles.load, tmp_path / "run") == line


def test_folders_that_are_no_model_are_refused(tmp_path, dataset):
    line = refusal(bundles.load, tmp_path / "x")
    assert line == (
        f"{tmp_path / 'x'}: no such folder; --model is a workdir or an export."
    )
    for folder in (tmp_path, dataset):
        line = refusal(bundles.load, folder)
        assert line.startswith(f"{folder}: no config.json, so no trained model;")


# Exports.


def test_an_export_converts_as_the_workdir_does(model, exported, tmp_path):
    assert files_below(exported) == FILES
    # Elsewhere, and without the run.
    moved = bundles.load(shutil.copytree(exported, tmp_path / "elsewhere"))
    assert_equal_trees(moved.params, jax.device_get(model.params))
    for singer in ("alto", "bass"):
        np.testing.assert_array_equal(sung(moved, singer), sung(model, singer))


def test_an_export_can_be_exported_again(exported, tmp_path):
    bundles.save(bundles.load(exported), exported, tmp_path / "again")
    for name in FILES:
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (exported / name).read_bytes(), name


def test_the_hashes_are_those_of_the_files(exported):
    """What sha256sum says of them."""
    found = json.loads((exported / "config.json").read_text())["export"]
    assert found["version"] == "1.0.0"
    assert found["dtype"] == "float32"
    assert sorted(found["sha256"]) == [name for name in FILES if name != "config.json"]
    for name, sha256 in found["sha256"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == sha256


def test_an_export_does_not_tell_of_the_machine_it_was_made_on(exported, dataset):
    assert str(dataset.parent) not in (exported / "config.json").read_text()


@pytest.mark.parametrize("name", ["wavenet", "source_filter"])
def test_half_the_bytes_sing_as_the_rounded_parameters(
    model_of, model_workdir, tmp_path, name
):
    model = model_of(name)
    for dtype in bundles.DTYPES:
        bundles.save(model, model_workdir, tmp_path / dtype, dtype=dtype)
    sizes = [
        (tmp_path / d / "params.safetensors").stat().st_size for d in bundles.DTYPES
    ]
    num_params = sum(x.size for x in jax.tree.leaves(model.params))
    assert sizes[0] - sizes[1] == pytest.approx(2 * num_params, abs=200)
    coarse = bundles.load(tmp_path / "bfloat16")

    def close(found, exact):
        assert found.dtype == np.float32
        # Eight bits of mantissa, rounded to nearest.
        np.testing.assert_allclose(found, exact, rtol=2**-8)

    jax.tree.map(close, coarse.params, jax.device_get(model.params))
    fine = sung(bundles.load(tmp_path / "float32"))
    np.testing.assert_array_equal(fine, sung(model))
    assert 0 < np.abs(sung(coarse) - fine).max() < 0.05 * np.abs(fine).max()


def test_what_would_sing_differently_is_not_written(
    model, model_workdir, tmp_path, monkeypatch
):
    save = weight_files.save_safetensors

    def save_badly(path, params, *rest):
        save(path, jax.tree.map(lambda x: 1.01 * x, params), *rest)

    monkeypatch.setattr(weight_files, "save_safetensors", save_badly)
    line = refusal(bundles.save, model, model_workdir, tmp_path / "model")
    assert line.startswith(
        f"{tmp_path / 'model'}: params.safetensors would differ from"
    )
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(model, model_workdir, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    line = refusal(bundles.save, model, model_workdir, tmp_path / "model")
    said = "cannot be written (No space left on device); name another --output."
    assert line == f"{tmp_path / 'model'}: {said}"
    assert not list(tmp_path.iterdir())


def test_an_export_below_a_file_is_refused(model, model_workdir, tmp_path):
    (tmp_path / "file").touch()
    line = refusal(bundles.save, model, model_workdir, tmp_path / "file" / "model")
    assert line.endswith("cannot be written (Not a directory); name another --output.")


def test_frozen_networks_may_stay_apart(
    model, model_workdir, tmp_path, wav2letter_file, monkeypatch
):
    folder = tmp_path / "model"
    bundles.save(model, model_workdir, folder, with_frozen=False)
    own = "frozen/wav2letter.safetensors"
    assert files_below(folder) == [name for name in FILES if name != own]
    assert str(folder / own) in refusal(bundles.load, folder)
    # A published file of that hash, found where weights are looked for.
    sha256 = hashlib.sha256(wav2letter_file.read_bytes()).hexdigest()
    file = published.PublishedFile("published.safetensors", sha256)
    monkeypatch.setitem(published.PUBLISHED, "wav2letter", (file,))
    monkeypatch.setenv("SVC_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    shutil.copy(wav2letter_file, tmp_path / "cache" / "published.safetensors")
    np.testing.assert_array_equal(sung(bundles.load(folder)), sung(model))
    # Or put there by hand, whole.
    (folder / "frozen").mkdir()
    (folder / own).write_bytes(wav2letter_file.read_bytes()[:-4] + b"oops")
    assert "is not the file that was exported" in refusal(bundles.load, folder)
    shutil.copy(wav2letter_file, folder / own)
    monkeypatch.undo()
    np.testing.assert_array_equal(sung(bundles.load(folder)), sung(model))


def test_an_output_that_exists_is_left_alone(model, model_workdir, tmp_path):
    output = tmp_path / "model"
    output.mkdir()
    line = refusal(bundles.save, model, model_workdir, output)
    assert line == f"{output}: exists; remove it or name another --output."
    assert list(tmp_path.iterdir()) == [output]
    assert not list(output.iterdir())


def test_an_interrupted_export_is_none(model, model_workdir, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weight_files, "save_safetensors", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bundles.save(model, model_workdir, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    bundles.save(model, model_workdir, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert files_below(tmp_path / "model") == FILES


def test_an_export_has_the_crepe_that_made_its_features(altered):
    params = jax.device_get(
        jax.jit(Crepe("tiny").init)(jax.random.key(0), np.zeros((1, 1024)))["params"]
    )
    path = altered / "frozen" / "crepe.safetensors"
    weight_files.save_safetensors(path, params, {"capacity": "tiny"}, "crepe")
    card = schema.Card.read(altered)
    f0 = {"network": "crepe-tiny", "sha256": None, "hop_length": 64}
    dataclasses.replace(card, f0=f0).write(altered)
    seal(altered)
    model = bundles.load(altered)
    assert model.extractor.crepe == Crepe("tiny")
    assert model.extractor.f0_hop == 64
    assert_equal_trees(model.frozen.crepe, params)
    path.unlink()
    assert str(path) in refusal(bundles.load, altered)


# Pieces amiss.


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "no config.json, so no trained model"),
        ("singers.json", "singers.json: is missing; get the whole model, or"),
        ("params.safetensors", "params.safetensors: is missing; get the whole model"),
        ("frozen/wav2letter.safetensors", "wav2letter.safetensors: is missing; get"),
    ],
)
def test_missing_pieces_are_named(altered, name, said):
    (altered / name).unlink()
    before = sorted(altered.rglob("*"))
    line = refusal(bundles.load, altered)
    assert str(altered) in line
    assert said in line
    assert sorted(altered.rglob("*")) == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "replaced"])
def test_damaged_pieces_are_named(altered, name, damage):
    content = (altered / name).read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "emptied": b""}
    (altered / name).write_bytes(damaged.get(damage, b"[1, 2, 3]"))
    assert str(altered / name) in refusal(bundles.load, altered)
    if name != "config.json":  # nor would it be taken without its hash
        seal(altered)
        assert str(altered / name) in refusal(bundles.load, altered)


@pytest.mark.parametrize("name", [name for name in FILES if name != "config.json"])
def test_one_altered_bit_is_noticed(altered, name):
    content = bytearray((altered / name).read_bytes())
    content[-3] ^= 1
    (altered / name).write_bytes(content)
    line = refusal(bundles.load, altered)
    assert line.startswith(
        f"{altered / name}: is not the file that was exported (sha256"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "2.0.0"}, "version 2.0.0 is newer than 1.0.0; update svc_jax."),
        ({"version": "new"}, "config.json: damaged (invalid literal for int()"),
        ({"sha256": 3}, "config.json: damaged ("),
    ],
)
def test_an_export_of_another_format_is_refused(altered, change, said):
    config = json.loads((altered / "config.json").read_text())
    config["export"] |= change
    checkpoints.write_json(altered / "config.json", config)
    assert said in refusal(bundles.load, altered)


def rewrite_params(folder, change):
    params, config = weight_files.read_safetensors(
        folder / "params.safetensors", "generator"
    )
    change(params)
    weight_files.save_safetensors(
        folder / "params.safetensors", params, config, "generator"
    )
    seal(folder)


def spoil(params):
    bias = params["wavenet"]["output1"]["bias"] = np.full(1, np.nan)
    assert bias.shape == (1,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.pop("singers"), "singers/embedding is nothing, but (2, 6) by"),
        (
            lambda p: p["singers"].update(embedding=np.zeros((3, 6))),
            "singers/embedding is (3, 6), but (2, 6) by config.json and singers.json",
        ),
        (
            lambda p: p.update(extra={"bias": np.zeros(4)}),
            "extra/bias is (4,), but nothing by config.json and singers.json",
        ),
        (spoil, "wavenet/output1/bias holds NaN; train and export again."),
    ],
)
def test_parameters_of_another_generator_are_refused(altered, change, said):
    rewrite_params(altered, change)
    line = refusal(bundles.load, altered)
    assert line.startswith(f"{altered / 'params.safetensors'}: {said}")


def test_a_singer_that_the_parameters_do_not_know_is_refused(altered):
    card = schema.Card.read(altered)
    more = dataclasses.replace(card.singers[0], name="tenor")
    dataclasses.replace(card, singers=(*card.singers, more)).write(altered)
    seal(altered)
    line = refusal(bundles.load, altered)
    assert "singers/embedding is (2, 6), but (3, 6) by config.json" in line


def test_a_config_that_does_not_fit_the_parameters_is_refused(altered):
    config = json.loads((altered / "config.json").read_text())
    config["generator"]["skip_channels"] = 5
    checkpoints.write_json(altered / "config.json", config)
    assert "params.safetensors: wavenet/" in refusal(bundles.load, altered)


def test_weights_of_another_kind_are_refused(altered):
    shutil.copy(
        altered / "frozen" / "wav2letter.safetensors", altered / "params.safetensors"
    )
    seal(altered)
    line = refusal(bundles.load, altered)
    assert "are of a wav2letter, not of a generator" in line


# Before training.


def test_an_untrained_model_sings_differently(model):
    before = bundles.untrained(model)
    shapes = jax.tree.map(np.shape, jax.device_get(before.params))
    assert shapes == jax.tree.map(np.shape, jax.device_get(model.params))
    changed = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), before.params, model.params
    )
    assert changed["singers"]["embedding"]
    assert changed["wavenet"]["layers"]["layer0"]["gate"]["dilated"]["direction"]
    assert np.abs(sung(before) - sung(model)).max() > 1e-2
    assert before.card == model.card


# Arrays.


@pytest.mark.parametrize(
    ("shape", "sample_rate"), [((4001,), 16_000), ((11_027, 2), 44_100), ((1,), 8000)]
)
def test_three_lines_convert_an_array(exported, shape, sample_rate):
    audio = np.repeat(song(shape[0]), shape[1:][0] if shape[1:] else 1).reshape(shape)
    model = svc_jax.load(exported)
    found = model.convert(audio, sample_rate, "bass", transpose="-3", seed=2)
    assert found.shape == shape[:1]
    assert found.dtype == np.float32
    mono, _ = audio_files.to_mono(audio.reshape(shape[0], -1), sample_rate, 16_000)
    expected, _ = synthesis.convert(model, mono, {"bass": 1.0}, transpose="-3", seed=2)
    if sample_rate == 16_000:
        np.testing.assert_array_equal(found, expected)
    virtual = model.convert(audio, sample_rate, {"bass": 0.5, "alto": 0.5})
    assert virtual.shape == shape[:1]


@pytest.mark.parametrize("audio", [[], [0.1, np.nan]])
def test_arrays_without_sound_are_refused(model, audio):
    assert refusal(model.convert, audio, 16_000, "bass").startswith("audio of shape (")
