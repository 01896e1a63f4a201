"""Trains a generator on a dataset.

  python -m svc_jax.train --config=configs/multi.py --workdir=runs/choir \\
      --config.data.dir=datasets/choir

The same command resumes a run from its newest checkpoint, bit for bit. WORKDIR gets
checkpoints, metrics.jsonl and tensorboard/. On SIGTERM it saves and ends. --describe
prints the networks and their cost instead.
"""

import functools
import math
import pathlib
import shutil
import sys

from svc_jax import command_line

SCALES = "feature_scales.json"  # of the perceptual losses, in the workdir
EVIDENCE = "not_finite"  # batches that the guard rolled back for, in the workdir


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
    from data_pipeline import embedded_dataset, schema
    from svc_jax import builders
    from svc_jax.errors import UserError

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
    from data_pipeline import schema
    from svc_jax import checkpoints
    from svc_jax.errors import UserError

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
    import jax

    from svc_jax import checkpoints
    from svc_jax.errors import UserError

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
    from data_pipeline import schema
    from svc_jax import builders, weights
    from svc_jax.features import FrozenParams

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
    from data_pipeline import grain_pipeline, input_pipeline
    from svc_jax.errors import UserError

    loaders = {"tf": input_pipeline, "grain": grain_pipeline}
    if name not in loaders:
        known = ", ".join(loaders)
        raise UserError(f"config.data.loader is {name!r}; choose one of {known}.")
    return loaders[name]


def run_scales(workdir, networks, objective, frozen, batch):
    """Scales of the perceptual losses: measured once, then the run's own."""
    import json

    import jax

    from svc_jax import checkpoints, sharding, steps

    path = pathlib.Path(workdir) / SCALES
    if not path.exists():
        measure = jax.jit(functools.partial(steps.feature_scales, networks, objective))
        values = jax.device_get(measure(frozen, batch))
        scales = {name: float(value) for name, value in values.items()}
        sharding.once(checkpoints.write_json, path, scales)
    return json.loads(path.read_text())


def rolled_back(restored, guard, step: int, batch: dict, limits, workdir):
    """The state of a run that goes back because updates in a row were not finite.

    Args:
      restored: state of the newest checkpoint.
      guard: of the state that is given up.
      step: of the last of those updates.
      batch: what it was of, kept in WORKDIR/not_finite.
      limits: config.guard.
      workdir: of the run.

    Returns:
      The restored state; its guard remembers.

    Raises:
      UserError: after too many rollbacks.
    """
    import jax
    import numpy as np

    from svc_jax import metrics, steps
    from svc_jax.errors import UserError

    path = pathlib.Path(workdir) / EVIDENCE / f"{step}_{jax.process_index()}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **batch)
    counts = zip(steps.GUARDED, guard.skipped, strict=True)
    named = ", ".join(f"{name} {count} times" for name, count in counts if count)
    told = (
        f"step {step + 1}: {limits.in_a_row} updates in a row were not finite (so far"
        f" {named}); {path} is the last one's batch"
    )
    if guard.rollbacks >= limits.rollbacks:
        raise UserError(
            f"{told}; giving up after {limits.rollbacks} rollbacks, lower the learning"
            " rates."
        )
    metrics.say(f"{told}; going back to step {int(restored.step)}, to other batches")
    guard = guard.replace(in_a_row=0 * guard.in_a_row, rollbacks=guard.rollbacks + 1)
    put = jax.tree.map(
        lambda new, old: jax.device_put(new, old.sharding), guard, restored.guard
    )
    return restored.replace(guard=put)


def trace_span(words: str | None) -> tuple[int | None, int | None]:
    """First and last step of a trace: of `A:B` both, of nothing None.

    Raises:
      UserError: if it is neither.
    """
    from svc_jax.errors import UserError

    if not words:
        return None, None
    first, _, last = words.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise UserError(f"--profile={words} is not FIRST:LAST, two steps.")
    return int(first), int(last)


def train(config, workdir, profile: str | None = None):
    """Trains from the newest checkpoint, or from nothing, to the end.

    Args:
      config: as configs/multi.py gives it.
      workdir: see the module's first lines.
      profile: first and last step of a trace, `A:B`, for WORKDIR/profile.

    Returns:
      The final TrainState.

    Raises:
      UserError: for a dataset or workdir that does not fit the config, a full disk, or
        losses that stay not finite.
      SystemExit: of code 0, when SIGTERM came.
    """
    from svc_jax import checkpoints

    span = trace_span(profile)
    with checkpoints.lock(workdir), checkpoints.disk_full_in_one_line(workdir):
        return _train_alone(config, pathlib.Path(workdir), span)


def _train_alone(config, workdir: pathlib.Path, span):
    """As `train`, in a workdir where nobody else trains."""
    import jax

    from data_pipeline import input_pipeline
    from svc_jax import builders, checkpoints, metrics, sharding, steps, validation
    from svc_jax.errors import UserError
    from svc_jax.types import Batch

    geometry = builders.geometry(config)
    batches_of = loader(config.data.loader)
    mesh = sharding.make_mesh(config.num_model)
    num_shares = mesh.shape["data"] * config.accumulate
    if config.batch_size % num_shares:
        raise UserError(
            f"config.batch_size {config.batch_size} cannot be split over"
            f" {mesh.shape['data']} devices, config.accumulate {config.accumulate};"
            f" make it a multiple of {num_shares}."
        )
    host, num_hosts = sharding.host_shard(mesh)
    sharding.once(claim, config, workdir)
    data_dir, card = find_dataset(config, workdir)
    extractor, frozen = load_frozen(config, card, workdir)
    input_pipeline.check_card(card, geometry, extractor.asr_size)
    networks = builders.networks(config, len(card.singers), extractor)
    optimizers = builders.run_optimizers(config)
    objective = builders.objective(config)

    rng_init, rng_train, rng_eval = jax.random.split(jax.random.key(config.seed), 3)
    init = functools.partial(steps.init_state, networks, optimizers)
    validation_batches = batches_of.eval_batches(
        data_dir,
        geometry,
        split=input_pipeline.eval_split(data_dir),
        batch_size=config.batch_size,
        most=config.eval_batches,
        shard_index=host,
        shard_count=num_hosts,
    )
    frozen = sharding.put_replicated(frozen, mesh)
    first_batch = sharding.to_global(Batch(**validation_batches[0]), mesh)
    scales = run_scales(workdir, networks, objective, frozen, first_batch)

    @functools.cache
    def step_fn(phase):
        step = builders.train_step(config, networks, optimizers, phase)
        return sharding.compiled_update(step, shardings, mesh)

    eval_fn = jax.jit(
        sharding.on_mesh(functools.partial(steps.eval_step, networks, objective), mesh),
        out_shardings=sharding.replicated(mesh),
    )

    def evaluate(params, batch):
        batch = sharding.to_global(Batch(**batch), mesh)
        return eval_fn(params, batch, frozen, scales, rng_eval)

    names = [singer.name for singer in card.singers]
    audio_seconds = config.batch_size * geometry.segment_samples / geometry.sample_rate
    with (
        checkpoints.manager(
            workdir, keep=config.keep, keep_every=config.keep_every
        ) as manager,
        metrics.Writer(workdir) as writer,
        checkpoints.preemption(manager) as preempted,
    ):
        state, shardings = checkpoints.begin(manager, init, rng_init, mesh)
        while (first_step := int(state.step)) < config.num_steps:
            drawn = batches_of.train_batches(
                data_dir,
                geometry,
                batch_size=config.batch_size,
                # A run that went back must not meet the same batches again.
                seed=config.seed + int(state.guard.rollbacks),
                first_step=first_step,
                shard_index=host,
                shard_count=num_hosts,
                balance=config.data.balance,
            )
            batches = input_pipeline.ahead(drawn)
            in_a_row, suspect = 0, {}
            clock = metrics.StepClock()
            numbers = metrics.progress(first_step, config.num_steps, writer)
            for step in metrics.profiled(numbers, workdir / "profile", *span):
                with clock.part("input"):
                    batch = next(batches)
                phase = builders.phase_at(config, len(card.singers), step)
                state, values = step_fn(phase)(
                    state,
                    sharding.to_global(Batch(**batch), mesh),
                    frozen,
                    scales,
                    rng_train,
                )
                # Of the update before: the device never waits for the host.
                if in_a_row >= config.guard.in_a_row:
                    guard = jax.device_get(state.guard)
                    state, _ = checkpoints.begin(manager, init, rng_init, mesh)
                    state = rolled_back(
                        state, guard, step - 1, suspect, config.guard, workdir
                    )
                    break
                in_a_row, suspect = values["guard/in_a_row"], batch
                done, loss = step + 1, math.inf
                last = done == config.num_steps
                stop = preempted(done)
                if done % config.log_every == 0 or last:
                    manager.check_for_errors()
                    values = jax.device_get(values)
                    writer.scalars(done, {**values, **clock.scalars(audio_seconds)})
                if done % config.eval_every == 0 or last:
                    with clock.part("evaluate"):
                        values, sung = validation.measure(
                            functools.partial(evaluate, state.ema_params),
                            validation_batches,
                        )
                    loss = values["validation/total"]
                    writer.scalars(done, values)
                    for heard in validation.examples(
                        names, validation_batches[0], sung
                    ):
                        writer.audio(done, *heard, geometry.sample_rate)
                # Amid a row the newest checkpoint must stay from before it.
                due = done % config.checkpoint_every == 0 or stop
                if last or (due and not in_a_row):
                    with clock.part("save"):
                        checkpoints.save(manager, done, state, loss)
                if stop:
                    metrics.say(f"stopped at {done}; resume with the same command")
                    sys.exit(0)
    return state


def describe(config) -> str:
    """A table of the networks of a config.

    The size of the ASR features is the dataset's; without one, the published
    Wav2Letter's.
    """
    from data_pipeline import schema
    from svc_jax import builders, describe

    num_singers, layer = 2 if config.generator.embedding_size else 1, "wide"
    if config.data.dir:
        card = schema.Card.read(config.data.dir)
        num_singers, layer = len(card.singers), card.asr["layer"]
        frozen, _ = load_frozen(config, card, config.data.dir)
        networks = builders.networks(config, num_singers, frozen)
    else:
        extractor = builders.extractor(builders.geometry(config), {}, layer, "tiny")
        networks = builders.networks(config, num_singers, extractor)
    return describe.table(networks)


def main(_, flags):
    from svc_jax import sharding
    from svc_jax.errors import UserError

    if flags.describe:
        print(describe(flags.config))
        return
    if not flags.workdir:
        raise UserError("--workdir is empty; name a folder for the run.")
    sharding.join_hosts(flags.coordinator, flags.num_processes, flags.process_id)
    train(flags.config, flags.workdir, flags.profile)


def define_flags():
    """Flags of the command line."""
    from absl import flags

    command_line.define_config()
    flags.DEFINE_string("workdir", None, "Where checkpoints and metrics go.")
    flags.DEFINE_string(
        "profile", None, "A:B: write a trace of steps A to B to WORKDIR/profile."
    )
    flags.DEFINE_bool(
        "describe",
        False,
        "Print the networks, their parameters and cost; train nothing.",
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0 where several train together; auto: JAX finds it, as"
        " it does by itself under srun, in an indexed Kubernetes Job and on GKE's TPUs.",
    )
    flags.DEFINE_integer("num_processes", None, "How many they are; 1: train alone.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
