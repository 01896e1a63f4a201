"""One update of the recogniser: pure functions of batches of data_pipeline.transcripts."""

import jax
import jax.numpy as jnp
import optax

from svc_jax import dsp, losses, optimizers, perturbation
from svc_jax.models.wav2letter import fold_norms
from svc_jax.types import AsrState, NetworkState


def initial_state(wav2letter, optimizer, rng) -> AsrState:
    """Fresh parameters, norms and optimiser of a Wav2Letter."""
    variables = wav2letter.init(rng, jnp.zeros((1, 100, 39)))
    params = variables["params"]
    network = NetworkState(params, optimizer.init(params))
    return AsrState(jnp.zeros((), jnp.int32), network, variables.get("batch_stats", {}))


def plain_params(state: AsrState):
    """Parameters of the Wav2Letter without norms that equals the trained one."""
    return fold_norms(state.network.params, state.batch_stats)


def batch_mfcc(batch):
    """Normalised MFCCs of a batch of recordings, each as if alone.

    Args:
      batch: `audio` [B, N] and `num_samples` [B], the real ones of the N; where they
        are to sound otherwise, also `warp` and `speed` [B] (see `perturbation`).

    Returns:
      ([B, T, 39], num_frames [B] real ones of the T).
    """
    num_samples = batch["num_samples"]
    num_frames = 1 + num_samples // dsp.MFCC_HOP
    filters = None
    if "warp" in batch:
        filters = perturbation.warp_filters(dsp.mel_filters(), batch["warp"])
    spectrum = dsp.log_mel(batch["audio"], num_samples, filters)
    if "speed" in batch:
        spectrum, num_frames = perturbation.stretch_time(
            spectrum, num_frames, batch["speed"]
        )
    peak = dsp.log_mel_peak(spectrum, num_frames)
    blocks = dsp.deltas(dsp.cepstrum(spectrum, peak), num_frames)
    return dsp.normalise_mfcc(blocks, dsp.mfcc_stats(blocks, num_frames)), num_frames


def predict(wav2letter, params, batch):
    """What a plain Wav2Letter makes of a batch.

    Returns:
      (dict of mfcc, hidden, wide and logits [B, A, C], how many of the A frames are
      real).
    """
    mfcc, num_frames = batch_mfcc(batch)
    outputs = wav2letter.apply({"params": params}, mfcc, num_frames)
    return {"mfcc": mfcc[:, ::2], **outputs}, (num_frames + 1) // 2


def train_step(wav2letter, optimizer, schedule, augmentation, state, batch, rng):
    """One update by CTC.

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
    rng = jax.random.fold_in(rng, state.step)
    rng_mask, rng_noise, rng_dropout = jax.random.split(rng, 3)
    mfcc, num_frames = batch_mfcc(batch)
    mfcc += augmentation["noise"] * jax.random.normal(rng_noise, mfcc.shape)
    mfcc = perturbation.mask_time(
        rng_mask, mfcc, augmentation["num_masks"], augmentation["longest_mask"]
    )

    def loss(params):
        outputs, updated = wav2letter.apply(
            {"params": params, "batch_stats": state.batch_stats},
            mfcc,
            num_frames,
            train=True,
            mutable="batch_stats",
            rngs={"dropout": rng_dropout},
        )
        logits = outputs["logits"]
        per_label = losses.ctc_loss(
            logits,
            (num_frames + 1) // 2,
            batch["labels"],
            batch["num_labels"],
            logits.shape[-1] - 1,
        )
        return jnp.mean(per_label), updated.get("batch_stats", {})

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(
        state.network.params
    )
    rate = schedule(state.step)
    network = optimizers.apply(optimizer, state.network, grads, rate)
    metrics = {
        "loss/ctc": value,
        "grad_norm/network": optax.tree.norm(grads),
        "learning_rate/network": rate,
    }
    state = state.replace(step=state.step + 1, network=network, batch_stats=batch_stats)
    return state, metrics
