"""Trains a small Wav2Letter by CTC on recordings with transcripts.

  python -m svc_jax.train_asr --config=configs/asr.py --workdir=runs/asr \\
      --config.data.tsv=corpus/transcripts.tsv

The table has the columns path, split (train or test), speaker, text[, phones]. The
result is WORKDIR/wav2letter.safetensors.
"""

import functools
import pathlib

from svc_jax import command_line

BLANK = "@"  # the name of CTC's blank, always the last label


def initial_state(wav2letter, optimizer, rng):
    """Fresh AsrState."""
    import jax.numpy as jnp

    from svc_jax.types import AsrState, NetworkState

    params = wav2letter.init(rng, jnp.zeros((1, 100, 39)))["params"]
    network = NetworkState(params, optimizer.init(params))
    return AsrState(jnp.zeros((), jnp.int32), network)


def batch_mfcc(audio, num_samples):
    """Normalised MFCCs of a batch of recordings, each as if alone.

    Args:
      audio: [B, N].
      num_samples: [B] real samples of the N.

    Returns:
      ([B, T, 39], num_frames [B] real ones of the T).
    """
    from svc_jax import dsp

    num_frames = 1 + num_samples // dsp.MFCC_HOP
    blocks = dsp.deltas(dsp.mfcc(audio, num_samples), num_frames)
    return dsp.normalise_mfcc(blocks, dsp.mfcc_stats(blocks, num_frames)), num_frames


def mask_time(rng, mfcc, num_masks: int, longest: int):
    """Zeros a few random spans of frames (SpecAugment, arXiv 1904.08779).

    Args:
      rng: a key.
      mfcc: [B, T, D].
      num_masks: spans per example.
      longest: frames in a span at most.
    """
    import jax
    import jax.numpy as jnp

    batch_size, total, _ = mfcc.shape
    rng_start, rng_length = jax.random.split(rng)
    shape = (batch_size, num_masks, 1)
    start = jax.random.randint(rng_start, shape, 0, total)
    length = jax.random.randint(rng_length, shape, 0, longest + 1)
    frame = jnp.arange(total)[None, None]
    masked = ((frame >= start) & (frame < start + length)).any(axis=1)
    return jnp.where(masked[..., None], 0.0, mfcc)


def batch_logits(wav2letter, params, audio, num_samples):
    """Label scores [B, A, C] of recordings, and how many of the A frames are real."""
    mfcc, num_frames = batch_mfcc(audio, num_samples)
    logits = wav2letter.apply({"params": params}, mfcc, num_frames)["logits"]
    return logits, (num_frames + 1) // 2


def train_step(wav2letter, optimizer, schedule, augmentation, state, batch, rng):
    """One update.

    Args:
      wav2letter, optimizer, schedule: fixed for a compiled step.
      augmentation: num_masks, longest_mask and noise, the deviation of what is added
        to the normalised MFCCs.
      state: AsrState, donated.
      batch: from transcripts.train_batches.
      rng: the run's key; it is folded with the step.

    Returns:
      (state, metrics).
    """
    import jax
    import jax.numpy as jnp
    import optax

    from svc_jax import losses, optimizers

    rng = jax.random.fold_in(rng, state.step)
    rng_mask, rng_noise, rng_dropout = jax.random.split(rng, 3)
    mfcc, num_frames = batch_mfcc(batch["audio"], batch["num_samples"])
    mfcc += augmentation["noise"] * jax.random.normal(rng_noise, mfcc.shape)
    mfcc = mask_time(
        rng_mask, mfcc, augmentation["num_masks"], augmentation["longest_mask"]
    )

    def loss(params):
        logits = wav2letter.apply(
            {"params": params}, mfcc, num_frames, rngs={"dropout": rng_dropout}
        )["logits"]
        per_label = losses.ctc_loss(
            logits,
            (num_frames + 1) // 2,
            batch["labels"],
            batch["num_labels"],
            logits.shape[-1] - 1,
        )
        return jnp.mean(per_label)

    value, grads = jax.value_and_grad(loss)(state.network.params)
    rate = schedule(state.step)
    network = optimizers.apply(optimizer, state.network, grads, rate)
    metrics = {
        "loss/ctc": value,
        "grad_norm/network": optax.tree.norm(grads),
        "learning_rate/network": rate,
    }
    return state.replace(step=state.step + 1, network=network), metrics


def greedy(logits, num_frames, blank: int) -> list[list[int]]:
    """The best label of every frame, repeats and blanks removed."""
    decoded = []
    for path, count in zip(logits.argmax(axis=-1), num_frames, strict=True):
        path = path[:count]
        changed = [True, *(path[1:] != path[:-1])]
        decoded.append([int(p) for p, c in zip(path, changed, strict=True) if c])
    return [[p for p in path if p != blank] for path in decoded]


def edit_distance(found, wanted) -> int:
    """Insertions, deletions and substitutions between two sequences (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b)),
            )
    return row[-1]


def error_rate(
    wav2letter, params, utterances, *, batch_seconds: float, max_buckets: int
) -> float:
    """Edit distance of the greedy decoding over the number of labels."""
    import jax
    import numpy as np

    from data_pipeline import transcripts

    predict = jax.jit(functools.partial(batch_logits, wav2letter))
    errors = total = 0
    for batch, count in transcripts.eval_batches(
        utterances, batch_seconds=batch_seconds, max_buckets=max_buckets
    ):
        logits, num_frames = jax.device_get(
            predict(params, batch["audio"], batch["num_samples"])
        )
        decoded = greedy(logits, num_frames, logits.shape[-1] - 1)
        for row in range(count):
            wanted = batch["labels"][row, : batch["num_labels"][row]]
            errors += edit_distance(decoded[row], np.asarray(wanted))
            total += len(wanted)
    return errors / max(total, 1)


def load_splits(table, unit: str):
    """Recordings of a table by split; what was left out is printed.

    Args:
      table: path of the transcripts.
      unit: phones or letters.

    Returns:
      (labels without the blank; dict of split -> list of transcripts.Utterance).

    Raises:
      UserError: if nothing is left to train on.
    """
    from data_pipeline import transcripts
    from svc_jax.errors import UserError

    rows = transcripts.read_table(table)
    labels = transcripts.alphabet(rows, unit)
    splits, dropped = transcripts.load(table, rows, unit, labels)
    for reason, count in dropped.items():
        print(f"left out {count}: {reason}")
    if not splits.get("train"):
        raise UserError(f"{table}: no usable row of split train; see above.")
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
      UserError: if the table is unusable, or the workdir holds a run of another config.
    """
    import jax

    from data_pipeline import transcripts
    from svc_jax import builders, checkpoints, metrics, optimizers, sharding, weights

    result = pathlib.Path(workdir) / "wav2letter.safetensors"
    checkpoints.claim_workdir(workdir, config)
    labels, held_out = load_splits(config.data.tsv, config.data.unit)
    train_set = held_out.pop("train")

    network = {**config.network.to_dict(), "num_labels": len(labels) + 1}
    wav2letter = builders.wav2letter(network, dropout=config.dropout)
    optimizer = optimizers.clipped_radam(config.max_grad_norm, config.epsilon)
    schedule = optimizers.warmup_cosine(
        config.learning_rate, config.num_steps, config.num_steps // 20
    )
    mesh = sharding.make_mesh()
    init = functools.partial(initial_state, wav2letter, optimizer)
    rng_init, rng_train = jax.random.split(jax.random.key(config.seed))
    measure = functools.partial(
        error_rate,
        wav2letter,
        batch_seconds=config.batch_seconds,
        max_buckets=config.max_buckets,
    )
    with (
        checkpoints.manager(workdir, keep=config.keep) as manager,
        metrics.Writer(workdir) as writer,
    ):
        state, shardings = checkpoints.begin(manager, init, rng_init, mesh)
        step_fn = jax.jit(
            functools.partial(
                train_step,
                wav2letter,
                optimizer,
                schedule,
                config.augmentation.to_dict(),
            ),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        )
        first_step = int(state.step)
        batches = transcripts.train_batches(
            train_set,
            batch_seconds=config.batch_seconds,
            max_buckets=config.max_buckets,
            seed=config.seed,
            first_step=first_step,
        )
        for step in metrics.progress(first_step, config.num_steps, writer):
            state, values = step_fn(state, next(batches), rng_train)
            done = step + 1
            last = done == config.num_steps
            if done % config.log_every == 0 or last:
                values = jax.device_get(values)
                metrics.check_finite(done, values)
                writer.scalars(done, values)
            if done % config.checkpoint_every == 0 or last:
                checkpoints.save(manager, done, state)
                for split, utterances in held_out.items():
                    rate = measure(state.network.params, utterances)
                    writer.scalars(done, {f"{split}/label_error_rate": rate})
                    metrics.say(f"step {done}: label error rate {rate:.1%}, {split}")
    params = jax.device_get(state.network.params)
    weights.save_wav2letter(result, params, {**network, "labels": [*labels, BLANK]})
    print(f"wrote {result}")
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
