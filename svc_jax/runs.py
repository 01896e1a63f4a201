"""What a run trains with: its dataset, networks, objective and batches."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from data_pipeline import embedded_dataset, grain_pipeline, input_pipeline, schema
from svc_jax import builders, checkpoints, sharding, steps, weights
from svc_jax.errors import UserError
from svc_jax.features import FrozenParams
from svc_jax.types import Batch, TrainState

SCALES = "feature_scales.json"  # of the perceptual losses, in the workdir


def find_dataset(config, workdir):
    """The dataset of a run, made first if it is the embedded one.

    Args:
      config: of the run.
      workdir: gets the embedded dataset.

    Returns:
      (the dataset's folder, its card).

    Raises:
      UserError: if there is none.
    """
    data_dir = config.data.dir
    if config.data.embedded and not data_dir:
        folder = pathlib.Path(workdir) / "data"
        data_dir = embedded_dataset.make(folder, builders.geometry(config))
    if not data_dir:
        raise UserError(
            "config.data.dir is empty; name a dataset with --config.data.dir=DATASET"
            " (data_pipeline.prepare makes one from recordings)."
        )
    return data_dir, schema.Card.of_dataset(data_dir)


def claim_dataset(config, workdir):
    """Keeps the description and networks of a run's dataset with the run.

    Args:
      config: of the run.
      workdir: gets singers.json and frozen/, so that it converts on its own.

    Returns:
      As `find_dataset`.

    Raises:
      UserError: if there is no dataset, or it differs from the run's.
    """
    workdir = pathlib.Path(workdir)
    data_dir, card = find_dataset(config, workdir)
    if not checkpoints.has_begun(workdir):
        shutil.copytree(
            pathlib.Path(data_dir) / schema.FROZEN,
            workdir / schema.FROZEN,
            dirs_exist_ok=True,
        )
        card.write(workdir)
        (workdir / SCALES).unlink(missing_ok=True)
    elif schema.Card.read(workdir) != card:
        raise UserError(
            f"{data_dir}: not the dataset that {workdir} was trained on; choose another"
            " --workdir."
        )
    return data_dir, card


def claim(config, workdir):
    """Makes a workdir this run's; process 0 does it for all.

    Raises:
      UserError: if it is another run's, or there is nothing to train on.
    """
    made = pathlib.Path(workdir) / "data" / "dataset"
    to_be_made = config.data.embedded and not config.data.dir and not made.exists()
    if to_be_made and jax.process_count() > 1:
        raise UserError(
            f"{made}: the embedded dataset is made by one process; start the run with"
            " one until it trains, then with several."
        )
    checkpoints.claim_workdir(workdir, config)
    claim_dataset(config, workdir)


def load_frozen(config, card, folder):
    """The frozen networks of the losses, and their weights.

    L_crepe and the f0 of mixup hear by CREPE tiny whatever made the dataset's f0.

    Args:
      config: of the run.
      card: of its dataset.
      folder: holds frozen/.

    Returns:
      (FeatureExtractor, FrozenParams).
    """
    frozen = pathlib.Path(folder) / schema.FROZEN
    wav2letter = weights.wav2letter(frozen / "wav2letter.safetensors")
    crepe = None
    if card.f0["network"] == "crepe-tiny":
        crepe = weights.crepe("tiny", frozen / "crepe.safetensors")
    elif card.f0["network"] != "yin":
        crepe = weights.crepe("tiny")
    extractor = builders.extractor(
        builders.geometry(config),
        wav2letter.config,
        card.asr["layer"],
        "tiny" if crepe else None,
        card.f0["hop_length"],
    )
    return extractor, FrozenParams(crepe and crepe.params, wav2letter.params)


def loader(name: str):
    """The module whose train_batches and eval_batches config.data.loader names.

    Raises:
      UserError: for an unknown name.
    """
    loaders = {"tf": input_pipeline, "grain": grain_pipeline}
    if name not in loaders:
        known = ", ".join(loaders)
        raise UserError(f"config.data.loader is {name!r}; choose one of {known}.")
    return loaders[name]


def run_scales(workdir, networks, objective, frozen, batch):
    """Scales of the perceptual losses: measured once, then the run's own."""
    path = pathlib.Path(workdir) / SCALES
    if not path.exists():
        measure = jax.jit(functools.partial(steps.feature_scales, networks, objective))
        values = jax.device_get(measure(frozen, batch))
        scales = {name: float(value) for name, value in values.items()}
        sharding.once(checkpoints.write_json, path, scales)
    return json.loads(path.read_text())


@dataclasses.dataclass(frozen=True)
class Run:
    """All that stays as it is while a run trains.

    Attributes:
      config: of the run, as configs/ gives it.
      mesh: of all devices.
      data_dir: of the dataset.
      card: of the dataset.
      networks: the modules.
      optimizers: of them.
      objective: what is minimised.
      frozen: weights of the frozen networks, on every device.
      scales: of the perceptual losses.
      validation_batches: of this host.
      keys: of fresh parameters, of training and of validation.
    """

    config: Any
    mesh: jax.sharding.Mesh
    data_dir: str | os.PathLike
    card: schema.Card
    networks: steps.Networks
    optimizers: steps.Optimizers
    objective: steps.Objective
    frozen: FrozenParams
    scales: dict[str, float]
    validation_batches: Sequence[dict]
    keys: tuple[jax.Array, jax.Array, jax.Array]

    @property
    def audio_seconds(self) -> float:
        """Of a batch."""
        geometry = self.config.geometry
        return self.config.batch_size * geometry.segment_samples / geometry.sample_rate

    def begin(self, manager) -> tuple[TrainState, Any]:
        """As checkpoints.begin: the newest state, or a fresh one, and its shardings."""
        init = functools.partial(steps.init_state, self.networks, self.optimizers)
        return checkpoints.begin(manager, init, self.keys[0], self.mesh)

    def train_batches(self, first_step: int, rollbacks: int) -> Iterator[dict]:
        """This host's batches from a step on, without end.

        A run that went back does not meet the same batches again.
        """
        drawn = loader(self.config.data.loader).train_batches(
            self.data_dir,
            builders.geometry(self.config),
            batch_size=self.config.batch_size,
            seed=self.config.seed + rollbacks,
            first_step=first_step,
            **_share(self.mesh),
            balance=self.config.data.balance,
        )
        return input_pipeline.ahead(drawn)

    def step_fn(self, shardings) -> Callable:
        """(step, state, batch of this host) -> (state, metrics), compiled by phase."""

        @functools.cache
        def compiled(phase):
            step = builders.train_step(
                self.config, self.networks, self.optimizers, phase
            )
            return sharding.compiled_update(step, shardings, self.mesh)

        def step_fn(step, state, batch):
            phase = builders.phase_at(self.config, len(self.card.singers), step)
            batch = sharding.to_global(Batch(**batch), self.mesh)
            return compiled(phase)(state, batch, self.frozen, self.scales, self.keys[1])

        return step_fn

    def eval_fn(self) -> Callable:
        """(parameters, batch of this host) -> what steps.eval_step gives, compiled."""
        step = functools.partial(steps.eval_step, self.networks, self.objective)
        compiled = jax.jit(
            sharding.on_mesh(step, self.mesh),
            out_shardings=sharding.replicated(self.mesh),
        )

        def eval_fn(params, batch):
            batch = sharding.to_global(Batch(**batch), self.mesh)
            return compiled(params, batch, self.frozen, self.scales, self.keys[2])

        return eval_fn


def _share(mesh) -> dict[str, int]:
    """Which part of each batch this host feeds, as the loaders want it."""
    host, num_hosts = sharding.host_shard(mesh)
    return {"shard_index": host, "shard_count": num_hosts}


def set_up(config, workdir) -> Run:
    """Claims a workdir and its dataset, and builds what trains there.

    Raises:
      UserError: for a dataset or workdir that does not fit the config.
    """
    mesh = sharding.make_mesh(config.num_model)
    num_shares = mesh.shape["data"] * config.accumulate
    if config.batch_size % num_shares:
        raise UserError(
            f"config.batch_size {config.batch_size} cannot be split over"
            f" {mesh.shape['data']} devices, config.accumulate {config.accumulate};"
            f" make it a multiple of {num_shares}."
        )
    batches_of = loader(config.data.loader)
    sharding.once(claim, config, workdir)
    data_dir, card = find_dataset(config, workdir)
    extractor, frozen = load_frozen(config, card, workdir)
    geometry = builders.geometry(config)
    input_pipeline.check_card(card, geometry, extractor.asr_size)
    networks = builders.networks(config, len(card.singers), extractor)
    objective = builders.objective(config)
    validation_batches = batches_of.eval_batches(
        data_dir,
        geometry,
        split=input_pipeline.eval_split(data_dir),
        batch_size=config.batch_size,
        most=config.eval_batches,
        **_share(mesh),
    )
    frozen = sharding.put_replicated(frozen, mesh)
    first_batch = sharding.to_global(Batch(**validation_batches[0]), mesh)
    return Run(
        config,
        mesh,
        data_dir,
        card,
        networks,
        builders.run_optimizers(config),
        objective,
        frozen,
        run_scales(workdir, networks, objective, frozen, first_batch),
        validation_batches,
        tuple(jax.random.split(jax.random.key(config.seed), 3)),
    )
