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
import sys

from svc_jax import command_line

EVIDENCE = "not_finite"  # batches that the guard rolled back for, in the workdir


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

    from svc_jax import checkpoints, metrics, runs

    run = runs.set_up(config, workdir)
    with (
        checkpoints.manager(
            workdir, keep=config.keep, keep_every=config.keep_every
        ) as manager,
        metrics.Writer(workdir) as writer,
        checkpoints.preemption(manager) as preempted,
    ):
        state, shardings = run.begin(manager)
        step_fn, eval_fn = run.step_fn(shardings), run.eval_fn()
        while (first_step := int(state.step)) < config.num_steps:
            batches = run.train_batches(first_step, int(state.guard.rollbacks))
            in_a_row, suspect = 0, {}
            clock = metrics.StepClock()
            numbers = metrics.progress(first_step, config.num_steps, writer)
            for step in metrics.profiled(numbers, workdir / "profile", *span):
                with clock.part("input"):
                    batch = next(batches)
                state, values = step_fn(step, state, batch)
                # Of the update before: the device never waits for the host.
                if in_a_row >= config.guard.in_a_row:
                    guard = jax.device_get(state.guard)
                    state, _ = run.begin(manager)
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
                    writer.scalars(done, {**values, **clock.scalars(run.audio_seconds)})
                if done % config.eval_every == 0 or last:
                    with clock.part("evaluate"):
                        evaluate = functools.partial(eval_fn, state.ema_params)
                        loss = validated(run, evaluate, writer, done)
                # Amid a row the newest checkpoint must stay from before it.
                due = done % config.checkpoint_every == 0 or stop
                if last or (due and not in_a_row):
                    with clock.part("save"):
                        checkpoints.save(manager, done, state, loss)
                if stop:
                    metrics.say(f"stopped at {done}; resume with the same command")
                    sys.exit(0)
    return state


def validated(run, evaluate, writer, step: int) -> float:
    """What a generator makes of the validation batches: written; their total loss.

    Args:
      run: from runs.set_up.
      evaluate: a batch -> what steps.eval_step gives.
      writer: of metrics.
      step: updates that it has had.
    """
    from svc_jax import validation

    values, sung = validation.measure(evaluate, run.validation_batches)
    writer.scalars(step, values)
    names = [singer.name for singer in run.card.singers]
    for heard in validation.examples(names, run.validation_batches[0], sung):
        writer.audio(step, *heard, run.config.geometry.sample_rate)
    return values["validation/total"]


def describe(config) -> str:
    """A table of the networks of a config.

    The size of the ASR features is the dataset's; without one, the published
    Wav2Letter's.
    """
    from data_pipeline import schema
    from svc_jax import builders, describe

    num_singers, layer = 2 if config.generator.embedding_size else 1, "wide"
    if config.data.dir:
        from svc_jax import runs

        card = schema.Card.read(config.data.dir)
        num_singers, layer = len(card.singers), card.asr["layer"]
        frozen, _ = runs.load_frozen(config, card, config.data.dir)
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
