"""Trains a Wav2Letter by CTC on recordings with transcripts.

  python -m svc_jax.train_asr --config=configs/asr.py --workdir=runs/asr \\
      --config.data.transcripts=corpus/transcripts.tsv

The transcripts are a table with the columns path, split, speaker, text[, phones], or a
folder in LibriSpeech's layout. The split train is trained on, every other is measured.
The result is WORKDIR/wav2letter.safetensors; WORKDIR/left_out.tsv names the recordings
that cannot be used, WORKDIR/report.json what was measured.
"""

import collections
import functools
import pathlib
import sys

from svc_jax import command_line

BLANK = "@"  # the name of CTC's blank, always the last label


def load_splits(data, workdir):
    """Recordings with transcripts, by split; what is left out is counted and listed.

    Args:
      data: config.data.
      workdir: gets left_out.tsv.

    Returns:
      (labels without the blank; dict of split -> list of transcripts.Utterance).

    Raises:
      UserError: if nothing is left to train on.
    """
    from data_pipeline import transcripts
    from svc_jax.errors import UserError

    folder, rows = transcripts.read(data.transcripts)
    labels = transcripts.alphabet(rows, data.unit, data.alphabet)
    splits, left_out = transcripts.load(folder, rows, data.unit, labels)
    listed = pathlib.Path(workdir) / "left_out.tsv"
    transcripts.write_left_out(listed, left_out)
    reasons = collections.Counter(reason.partition(":")[0] for _, reason in left_out)
    for reason, count in reasons.items():
        print(f"left out {count}: {reason}")
    if left_out:
        print(f"each of them: {listed}")
    if not splits.get("train"):
        raise UserError(
            f"{data.transcripts}: no usable recording of split train; {listed} says why."
        )
    samples = sum(utterance.audio.size for utterance in splits["train"])
    minutes = samples / transcripts.SAMPLE_RATE / 60
    print(f"{len(splits['train'])} recordings, {minutes:.1f} minutes, for training")
    return labels, splits


def train(config, workdir) -> pathlib.Path:
    """Trains from the newest checkpoint, or from nothing, to the end.

    Args:
      config: configs/asr.py.
      workdir: checkpoints, metrics and the result go here.

    Returns:
      Path of the trained weights.

    Raises:
      UserError: if the transcripts are unusable, the workdir holds a run of another
        config or is in use, or the disk is full.
      SystemExit: of code 0, when SIGTERM came.
    """
    from svc_jax import checkpoints

    with checkpoints.lock(workdir), checkpoints.disk_full_in_one_line(workdir):
        return _train_alone(config, pathlib.Path(workdir))


def _train_alone(config, workdir: pathlib.Path) -> pathlib.Path:
    """As `train`, in a workdir where nobody else trains."""
    import jax

    from data_pipeline import transcripts
    from svc_jax import (
        asr_steps,
        builders,
        checkpoints,
        metrics,
        optimizers,
        recognition,
        sharding,
        weights,
    )

    result = workdir / "wav2letter.safetensors"
    checkpoints.claim_workdir(workdir, config)
    labels, held_out = load_splits(config.data, workdir)
    train_set = held_out.pop("train")

    network = {**config.network.to_dict(), "num_labels": len(labels) + 1}
    wav2letter = builders.wav2letter(network)
    trained = wav2letter.clone(normed=True, dropout=config.dropout)
    optimizer = optimizers.clipped_adamw(
        config.max_grad_norm, config.b2, config.weight_decay
    )
    schedule = optimizers.warmup_cosine(
        config.learning_rate, config.num_steps, config.num_steps // 20
    )
    mesh = sharding.make_mesh()
    init = functools.partial(asr_steps.initial_state, trained, optimizer)
    rng_init, rng_train = jax.random.split(jax.random.key(config.seed))
    limits = {"batch_seconds": config.batch_seconds, "max_buckets": config.max_buckets}
    measured_by = labels, config.data.unit, limits
    with (
        checkpoints.manager(workdir, keep=config.keep) as manager,
        metrics.Writer(workdir) as writer,
        checkpoints.preemption(manager) as preempted,
    ):
        state, shardings = checkpoints.begin(manager, init, rng_init, mesh)
        step = functools.partial(
            asr_steps.train_step,
            trained,
            optimizer,
            schedule,
            config.augmentation.to_dict(),
        )
        step_fn = sharding.compiled_update(step, shardings, mesh)
        first_step = int(state.step)
        batches = transcripts.train_batches(
            train_set,
            **limits,
            perturbation=transcripts.Perturbation(**config.perturbation),
            seed=config.seed,
            first_step=first_step,
            num_devices=jax.device_count(),
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        for step in metrics.progress(first_step, config.num_steps, writer):
            batch = sharding.to_global(next(batches), mesh)
            state, values = step_fn(state, batch, rng_train)
            done = step + 1
            last = done == config.num_steps
            stop = preempted(done)
            due = last or done % config.checkpoint_every == 0
            if done % config.log_every == 0 or last:
                values = jax.device_get(values)
                metrics.check_finite(done, values)
                writer.scalars(done, values)
            if due or stop:
                checkpoints.save(manager, done, state)
            if stop and not last:
                metrics.say(f"stopped at {done}; resume with the same command")
                sys.exit(0)
            if due:
                params = asr_steps.plain_params(state, config.prior_scale)
                for split, utterances in held_out.items():
                    rates = recognition.error_rates(
                        wav2letter, params, utterances, *measured_by
                    )
                    writer.scalars(done, {f"{split}/{k}": v for k, v in rates.items()})
                    metrics.say(f"step {done}, {split}: {recognition.percents(rates)}")
    params = jax.device_get(asr_steps.plain_params(state, config.prior_scale))
    weights.save_wav2letter(result, params, {**network, "labels": [*labels, BLANK]})
    print(f"wrote {result}")
    found = {
        split: recognition.report(wav2letter, params, utterances, *measured_by)
        for split, utterances in held_out.items()
    }
    checkpoints.write_json(workdir / "report.json", found)
    print("\n".join(recognition.lines(found)))
    return result


def main(_, flags):
    train(flags.config, flags.workdir)


def define_flags():
    """Flags of the command line."""
    from absl import flags

    command_line.define_config()
    flags.DEFINE_string(
        "workdir", None, "Where checkpoints and results go.", required=True
    )


def run():
    """Entry point."""
    command_line.run(main, define_flags, __doc__)


if __name__ == "__main__":
    run()
