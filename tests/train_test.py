"""Whole runs of the trainer at tiny size."""

import functools
import json

import jax
import numpy as np
import pytest

from data_pipeline import grain_pipeline, input_pipeline
from svc_jax import builders, checkpoints, metrics, runs, sharding, steps, train
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
    for name in ("spectral", "total", "reconstruction/ffe", "conversion/vde"):
        assert f"validation/{name}" in by_step[4]
    for name in ("time/input", "time/save", "speed/audio_seconds"):
        assert by_step[3][name] >= 0
    assert all(np.isfinite(v) for line in lines for v in line.values())
    assert checkpoints.manager(workdir, keep=None).all_steps() == [2, 4]
    (events,) = (workdir / "tensorboard").iterdir()
    content = events.read_bytes()
    for name in (b"reconstruction/alto", b"spectrogram/conversion/alto_to_bass"):
        assert name in content


def test_an_interrupted_run_ends_bit_equal(
    finished, tiny_config, tmp_path, monkeypatch
):
    class Killed(Exception):
        pass

    def stop_at_3(writer, step, values):
        if step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Writer, "scalars", stop_at_3)
        with pytest.raises(Killed):
            train.train(tiny_config(), tmp_path)
    assert checkpoints.newest(tmp_path) == 2
    assert_equal_states(train.train(tiny_config(), tmp_path), finished[1])


class Poisoned:
    """The loader, but batches that `is_poisoned(seed, step)` names hold a NaN."""

    def __init__(self, is_poisoned):
        self._is_poisoned = is_poisoned
        self.asked = []  # (seed, first step)
        self.eval_batches = input_pipeline.eval_batches

    def train_batches(self, *args, seed, first_step, **options):
        self.asked.append((seed, first_step))
        batches = input_pipeline.train_batches(
            *args, seed=seed, first_step=first_step, **options
        )
        for step, batch in enumerate(batches, first_step):
            if self._is_poisoned(seed, step):
                batch["audio"] = batch["audio"] * np.nan
            yield batch


@pytest.fixture
def short_config(tiny_config):
    """Six steps of the first phase, a checkpoint at each."""

    def make(**changes):
        first_phase = {"phases.adversarial": 1.0, "phases.mixup": 1.0}
        every = {"num_steps": 6, "checkpoint_every": 1, "eval_every": 6}
        return tiny_config(**{**first_phase, **every, **changes})

    return make


def test_updates_not_finite_are_skipped_and_a_row_of_them_rolls_back(
    short_config, tmp_path, monkeypatch, capsys
):
    # One is skipped, the three from 3 on are too many, whatever data follows.
    loader = Poisoned(lambda seed, step: step == 1 or (seed == 0 and step >= 3))
    monkeypatch.setattr(runs, "loader", lambda _: loader)
    config = short_config(**{"guard.in_a_row": 2, "keep": 9})
    state = train.train(config, tmp_path)
    assert int(state.step) == 6
    assert loader.asked == [(0, 0), (1, 3)]
    assert int(state.guard.rollbacks) == 1
    said = capsys.readouterr().out
    assert "step 5: 2 updates in a row were not finite (so far loss/spectral 4" in said
    assert "going back to step 3, to other batches" in said
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    skipped = [x for x in map(json.loads, lines) if x.get("loss/spectral", 0) is None]
    assert [line["step"] for line in skipped] == [2, 4, 5]
    # Amid a row nothing is saved, so that the newest checkpoint is from before it.
    assert checkpoints.steps(tmp_path) == [6, 5, 4, 3, 1]
    # What is saved remembers, so that a resumed run keeps to its data.
    for step, rollbacks in ((3, 0), (4, 1)):
        wanted = {"guard": jax.eval_shape(lambda: state.guard)}
        guard = checkpoints.restore(tmp_path, step, wanted)["guard"]
        assert int(guard.rollbacks) == rollbacks


def test_a_run_that_stays_not_finite_is_given_up_with_its_batch(
    short_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "loader", lambda _: Poisoned(lambda *_: True))
    config = short_config(**{"guard.in_a_row": 1, "guard.rollbacks": 0})
    with pytest.raises(
        UserError, match=r"not finite \(so far loss/spectral"
    ) as refused:
        train.train(config, tmp_path)
    path = tmp_path / "not_finite" / "0_0.npz"
    assert f"{path} is the last one's batch; giving up" in str(refused.value)
    assert "\n" not in str(refused.value)
    with np.load(path) as batch:
        assert set(batch) == set(input_pipeline.BATCH_FIELDS)
        assert np.isnan(batch["audio"]).all()
    assert checkpoints.steps(tmp_path) == []


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


def test_harmless_keys_may_change_and_are_listed(finished, tiny_config, capsys):
    train.train(tiny_config(log_every=2, keep=1), finished[0])
    said = capsys.readouterr().out
    assert "resumed with another keep 3 -> 1\n" in said
    assert "resumed with another log_every 1 -> 2\n" in said
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


@pytest.fixture(scope="module")
def first_step(tiny_config, dataset, model_workdir):
    """Metrics of the first step of the last phase on a mesh of some devices."""
    config = tiny_config()
    card = input_pipeline.Records(dataset, "train").card
    extractor, frozen = runs.load_frozen(config, card, model_workdir)
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


def test_a_trace_is_of_two_steps():
    assert train.trace_span(None) == (None, None)
    assert train.trace_span("10:20") == (10, 20)
    for words in ("10", "20:10", "a:b", "-1:2"):
        with pytest.raises(UserError, match=rf"--profile={words} is not FIRST:LAST"):
            train.trace_span(words)


def test_batches_are_of_the_loader_that_is_named():
    assert runs.loader("tf") is input_pipeline
    assert runs.loader("grain") is grain_pipeline
    with pytest.raises(UserError, match="config.data.loader is 'torch'; choose one of"):
        runs.loader("torch")
