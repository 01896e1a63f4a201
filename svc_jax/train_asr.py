"""Trains a small Wav2Letter by CTC on recordings with transcripts.

  python -m svc_jax.train_asr --config=configs/asr.py --workdir=runs/asr \\
      --config.data.tsv=corpus/transcripts.tsv

The table has the columns path, split (train or test), speaker, text[, phones]. The
result is WORKDIR/wav2letter.safetensors.
"""

import functools
import pathlib

from absl import flags

from svc_jax import command_line

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and results go.")


def initial_state(wav2letter, optimizer, rng):
    """Fresh AsrState."""
    import jax.numpy as jnp

    from svc_jax.types import AsrState, NetworkState

    params = wav2letter.init(rng, jnp.zeros((1, 100, 39)))["params"]
    network = NetworkState(params, optimizer.init(params))
    return AsrState(jnp.zeros((), jnp.int32), network)


def batch_logits(wav2letter, params, audio, num_samples):
    """Label scores of a batch of recordings, each as if alone.

    Args:
      wav2letter: the network.
      params: its weights.
      audio: [B, N].
      num_samples: [B] real samples of the N.

    Returns:
      (logits [B, A, C], num_frames [B] real ones of the A).
    """
    from svc_jax import dsp

    num_frames = 1 + num_samples // dsp.MFCC_HOP
    blocks = dsp.deltas(dsp.mfcc(audio, num_samples), num_frames)
    mfcc = dsp.normalise_mfcc(blocks, dsp.mfcc_stats(blocks, num_frames))
    logits = wav2letter.apply({"params": params}, mfcc, num_frames)["logits"]
    return logits, (num_frames + 1) // 2


def train_step(wav2letter, optimizer, schedule, state, batch):
    """One update; returns (state, metrics)."""
    import jax
    import jax.numpy as jnp
    import optax

    from svc_jax import losses, optimizers

    def loss(params):
        logits, num_frames = batch_logits(
            wav2letter, params, batch["audio"], batch["num_samples"]
        )
        per_label = losses.ctc_loss(
            logits,
            num_frames,
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
        "grad_norm/network": optax.global_norm(grads),
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


def error_rate(wav2letter, params, utterances, batch_seconds: float) -> float:
    """Edit distance of the greedy decoding over the number of labels."""
    import jax
    import numpy as np

    from data_pipeline import transcripts

    predict = jax.jit(functools.partial(batch_logits, wav2letter))
    errors = total = 0
    for batch, count in transcripts.eval_batches(
        utterances, batch_seconds=batch_seconds
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
    from svc_jax import checkpoints, metrics, optimizers, sharding, weights
    from svc_jax.errors import UserError
    from svc_jax.models.wav2letter import Wav2Letter

    result = pathlib.Path(workdir) / "wav2letter.safetensors"
    checkpoints.claim_workdir(workdir, config)
    rows = transcripts.read_table(config.data.tsv)
    labels = transcripts.alphabet(rows, config.data.unit)
    held_out, dropped = transcripts.load(
        config.data.tsv, rows, config.data.unit, labels
    )
    for reason, count in dropped.items():
        print(f"left out {count}: {reason}")
    train_set = held_out.pop("train", [])
    if not train_set:
        raise UserError(f"{config.data.tsv}: no usable row of split train; see above.")
    seconds = sum(u.audio.size for u in train_set) / transcripts.SAMPLE_RATE
    print(f"{len(train_set)} recordings, {seconds / 60:.1f} minutes, for training")

    wav2letter = Wav2Letter(
        config.channels, config.wide_channels, num_labels=len(labels) + 1
    )
    optimizer = optimizers.clipped_radam(config.max_grad_norm, config.epsilon)
    schedule = optimizers.warmup_cosine(
        config.learning_rate, config.num_steps, config.num_steps // 20
    )
    mesh = sharding.make_mesh()
    init = functools.partial(initial_state, wav2letter, optimizer)
    rng = jax.random.key(config.seed)
    abstract = jax.eval_shape(init, rng)
    shardings = sharding.state_shardings(abstract, mesh)
    manager = checkpoints.manager(workdir, keep=config.keep)
    if manager.latest_step() is None:
        state = jax.jit(init, out_shardings=shardings)(rng)
    else:
        state = checkpoints.restore(manager, abstract, shardings)
    step_fn = jax.jit(
        functools.partial(train_step, wav2letter, optimizer, schedule),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    writer = metrics.Writer(workdir)
    first_step = int(state.step)
    batches = transcripts.train_batches(
        train_set,
        batch_seconds=config.batch_seconds,
        seed=config.seed,
        first_step=first_step,
    )
    bar = metrics.progress(config.num_steps, first_step)
    for step in range(first_step + 1, config.num_steps + 1):
        state, values = step_fn(state, next(batches))
        bar.update()
        if step % config.log_every == 0 or step == config.num_steps:
            values = jax.device_get(values)
            metrics.check_finite(step, values)
            writer.scalars(step, values)
            bar.set_postfix(ctc=f"{values['loss/ctc']:.3f}")
        if step % config.checkpoint_every == 0 or step == config.num_steps:
            checkpoints.save(manager, step, state)
            for split, utterances in held_out.items():
                rate = error_rate(
                    wav2letter, state.network.params, utterances, config.batch_seconds
                )
                writer.scalars(step, {f"{split}/label_error_rate": rate})
                bar.write(f"step {step}: label error rate {rate:.1%} on split {split}")
    manager.wait_until_finished()
    bar.close()
    writer.close()
    weights.save_wav2letter(
        result,
        jax.device_get(state.network.params),
        {
            "channels": config.channels,
            "wide_channels": config.wide_channels,
            "num_labels": len(labels) + 1,
            "labels": labels,
        },
    )
    print(f"wrote {result}")
    return result


def main(_):
    train(_CONFIG.value, _WORKDIR.value)


def run():
    """Entry point."""
    flags.mark_flag_as_required("workdir")
    command_line.run(main)


if __name__ == "__main__":
    run()
