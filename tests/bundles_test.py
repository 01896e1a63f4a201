"""Models as a whole: from a workdir, from an export, and with pieces amiss."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from data_pipeline import schema
from svc_jax import bundles, checkpoints, steps, synthesis, weight_files
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
        ("singers.json", "no singers.json, so neither dataset nor model"),
        ("params.safetensors", "holds neither params.safetensors nor a checkpoint"),
        ("frozen/wav2letter.safetensors", "wav2letter.safetensors cannot be read"),
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


def rewrite_params(folder, change):
    params, config = weight_files.read_safetensors(
        folder / "params.safetensors", "generator"
    )
    change(params)
    weight_files.save_safetensors(
        folder / "params.safetensors", params, config, "generator"
    )


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
    assert changed["wavenet"]["layer0"]["dilated"]["direction"]
    assert np.abs(sung(before) - sung(model)).max() > 1e-2
    assert before.card == model.card
