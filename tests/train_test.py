"""Whole runs of the trainer at tiny size."""

import functools
import json

import jax
import numpy as np
import pytest

from data_pipeline import grain_pipeline, input_pipeline
from svc_jax import builders, checkpoints, metrics, sharding, steps, train
from svc_jax.errors import UserError
from svc_jax.types import Batch


def assert_equal_states(found, expected):
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected)
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_config):
    """A workdir after four uninterrupted steps, and the final state."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train.train(tiny_config(), workdir)


def test_a_run_writes_metrics_pictures_and_checkpoints(finished):
    workdir, state = finished
    assert int(state.step) == 4
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    by_step = {}
    for line in lines:
        by_step.setdefault(line["step"], {}).update(line)
    assert set(by_step) == {1, 2, 3, 4}
    assert "loss/spectral" in by_step[1]
    assert "loss/adversarial" not in by_step[1]
    assert "loss/adversarial" in by_step[2]  # a quarter of the run
    assert "validation/spectral" in by_step[4]
    assert all(np.isfinite(v) for line in lines for v in line.values())
    assert checkpoints.manager(workdir, keep=None).all_steps() == [2, 4]
    (events,) = (workdir / "tensorboard").iterdir()
    content = events.read_bytes()
    for name in (b"reconstruction", b"conversion", b"spectrogram/conversion"):
        assert name in content


def test_an_interrupted_run_ends_bit_equal(
    finished, tiny_config, tmp_path, monkeypatch
):
    class Killed(Exception):
        pass

    def stop_at_3(step, values):
        if step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "check_finite", stop_at_3)
        with pytest.raises(Killed):
            train.train(tiny_config(), tmp_path)
    manager = checkpoints.manager(tmp_path, keep=None)
    manager.wait_until_finished()
    assert manager.latest_step() == 2
    assert_equal_states(train.train(tiny_config(), tmp_path), finished[1])


def test_a_finished_run_is_only_loaded(finished, tiny_config):
    workdir, state = finished
    assert_equal_states(train.train(tiny_config(), workdir), state)


def test_another_config_is_refused_and_named(finished, tiny_config):
    with pytest.raises(UserError, match=r"generator\.channels 4 -> 8"):
        train.train(tiny_config(**{"generator.channels": 8}), finished[0])


def test_a_run_that_never_began_may_change_its_config(tiny_config, tmp_path):
    with pytest.raises(UserError, match="hop_length"):
        train.train(tiny_config(**{"geometry.hop_length": 80}), tmp_path)
    checkpoints.claim_workdir(tmp_path, tiny_config())
    assert checkpoints.load_config(tmp_path).geometry.hop_length == 64


def test_harmless_keys_may_change(finished, tiny_config):
    train.train(tiny_config(log_every=2, keep=1), finished[0])
    recorded = json.loads((finished[0] / "config.json").read_text())
    assert recorded["log_every"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.dir": ""}, r"config\.data\.dir is empty"),
        ({"data.dir": "no/such/place"}, r"no/such/place: no singers\.json"),
        ({"geometry.hop_length": 80}, r"hop_length"),
        ({"geometry.hop_length": 100}, r"asr_hop_length 320 must be a multiple"),
        ({"generator.name": "wavenot"}, r"'wavenot'; choose one of wavenet"),
        ({"generator.loudness_factors": (4, 4)}, r"give 16; the hop is 64"),
    ],
)
def test_unusable_configs_end_in_one_line(tiny_config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as refused:
        train.train(tiny_config(**changes), tmp_path)
    assert "\n" not in str(refused.value)


def test_a_metric_that_is_not_finite_is_named():
    with pytest.raises(FloatingPointError, match="loss/pitch is nan at step 7"):
        metrics.check_finite(7, {"loss/spectral": 1.0, "loss/pitch": float("nan")})


@pytest.fixture(scope="module")
def first_step(tiny_config, dataset, model_workdir):
    """Metrics of the first step of the last phase on a mesh of some devices."""
    config = tiny_config()
    card = input_pipeline.Records(dataset, "train").card
    extractor, frozen = train.load_frozen(config, card, model_workdir)
    networks = builders.networks(config, len(card.singers), extractor)
    optimizers = builders.run_optimizers(config)
    objective = builders.objective(config)
    geometry = builders.geometry(config)
    batches = input_pipeline.train_batches(dataset, geometry, batch_size=8, seed=0)
    batch = Batch(**next(batches))
    scales = {"content": 1.0}

    @functools.cache
    def run(devices, num_model=1):
        mesh = jax.sharding.Mesh(
            np.asarray(jax.devices()[:devices]).reshape(-1, num_model),
            sharding.MESH_AXES,
        )
        init = functools.partial(steps.init_state, networks, optimizers)
        rng = jax.random.key(0)
        shardings = sharding.state_shardings(jax.eval_shape(init, rng), mesh)
        state = jax.jit(init, out_shardings=shardings)(rng)
        step = functools.partial(
            steps.train_step, networks, optimizers, objective, steps.Phase(True, True)
        )
        return jax.device_get(
            jax.jit(step)(
                state,
                sharding.to_global(batch, mesh),
                sharding.put_replicated(frozen, mesh),
                scales,
                jax.random.key(1),
            )[1]
        )

    return run


@pytest.mark.parametrize("num_model", [1, 2])
def test_eight_devices_agree_with_one(first_step, num_model):
    many, one = first_step(8, num_model), first_step(1)
    assert many.keys() == one.keys()
    for name, value in one.items():
        assert many[name] == pytest.approx(value, rel=2e-4), name


def test_batches_are_of_the_loader_that_is_named():
    assert train.loader("tf") is input_pipeline
    assert train.loader("grain") is grain_pipeline
    with pytest.raises(UserError, match="config.data.loader is 'torch'; choose one of"):
        train.loader("torch")
