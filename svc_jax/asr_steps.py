"""One update of the recogniser: pure functions of batches of data_pipeline.transcripts."""

import jax
import jax.numpy as jnp
import optax

from svc_jax import dsp, losses, optimizers, perturbation
from svc_jax.models.wav2letter import fold_norms
from svc_jax.types import AsrState, NetworkState

_MOMENTUM = 0.99  # of the prior that is remembered
_RAREST = 1e-3  # a label is not taken to be rarer, in frames


def initial_state(wav2letter, optimizer, rng) -> AsrState:
    """Fresh parameters, norms and optimiser of a Wav2Letter."""
    variables = wav2letter.init(rng, jnp.zeros((1, 100, 39)))
    params = variables["params"]
    return AsrState(
        step=jnp.zeros((), jnp.int32),
        network=NetworkState(params, optimizer.init(params)),
        batch_stats=variables.get("batch_stats", {}),
        prior=jnp.full(wav2letter.num_labels, 1 / wav2letter.num_labels),
    )


def plain_params(state: AsrState, prior_scale: float = 0.0):
    """Parameters of the Wav2Letter without norms that equals the trained one.

    Args:
      state: of the training.
      prior_scale: power of the labels' prior that their probabilities are divided by;
        CTC answers blank more often than is right where it is unsure, and divided it
        misses fewer labels (Miao et al. 2015, arXiv 1507.08240).
    """
    params = fold_norms(state.network.params, state.batch_stats)
    output = params["output"]
    bias = output["bias"] - prior_scale * jnp.log(state.prior + _RAREST)
    return {**params, "output": {**output, "bias": bias}}


def label_prior(logits, num_frames):
    """How often each label is expected in the real frames: [B, A, C] -> [C], sum 1."""
    real = dsp.mask(num_frames, logits.shape[1])[..., None]
    return jnp.sum(jax.nn.softmax(logits) * real, axis=(0, 1)) / jnp.sum(real)


def batch_mfcc(batch, per_coefficient: bool = False):
    """Normalised MFCCs of a batch of recordings, each as if alone.

    Args:
      batch: `audio` [B, N] and `num_samples` [B], the real ones of the N; where they
        are to sound otherwise, also `warp` and `speed` [B] (see `perturbation`).
      per_coefficient: see `dsp.mfcc_stats`.

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
    stats = dsp.mfcc_stats(blocks, num_frames, per_coefficient)
    return dsp.normalise_mfcc(blocks, stats), num_frames


def predict(wav2letter, params, batch):
    """What a plain Wav2Letter makes of a batch.

    Returns:
      (dict of mfcc, hidden, wide and logits [B, A, C], how many of the A frames are
      real).
    """
    mfcc, num_frames = batch_mfcc(batch, wav2letter.per_coefficient)
    outputs = wav2letter.apply({"params": params}, mfcc, num_frames)
    return {"mfcc": mfcc[:, ::2], **outputs}, (num_frames + 1) // 2


def train_step(wav2letter, optimizer, schedule, augmentation, state, batch, rng):
    """One update by CTC.

    Args:
      wav2letter, optimizer, schedule: fixed for a compiled step.
      augmentation: num_masks, longest_mask and noise, what is added to the MFCCs in
        units of each one's deviation.
      state: AsrState, donated.
      batch: from transcripts.train_batches.
      rng: the run's key; it is folded with the step.

    Returns:
      (state, metrics).
    """
    rng = jax.random.fold_in(rng, state.step)
    rng_mask, rng_noise, rng_dropout = jax.random.split(rng, 3)
    mfcc, num_frames = batch_mfcc(batch, wav2letter.per_coefficient)
    deviation = augmentation["noise"] * jnp.std(mfcc, axis=(0, 1), keepdims=True)
    mfcc += deviation * jax.random.normal(rng_noise, mfcc.shape)
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
        logits, num_outputs = outputs["logits"], (num_frames + 1) // 2
        per_label = losses.ctc_loss(
            logits,
            num_outputs,
            batch["labels"],
            batch["num_labels"],
            logits.shape[-1] - 1,
        )
        prior = label_prior(logits, num_outputs)
        return jnp.mean(per_label), (updated.get("batch_stats", {}), prior)

    (value, (batch_stats, prior)), grads = jax.value_and_grad(loss, has_aux=True)(
        state.network.params
    )
    rate = schedule(state.step)
    network = optimizers.apply(optimizer, state.network, grads, rate)
    metrics = {
        "loss/ctc": value,
        "grad_norm/network": optax.tree.norm(grads),
        "learning_rate/network": rate,
    }
    state = AsrState(
        step=state.step + 1,
        network=network,
        batch_stats=batch_stats,
        prior=_MOMENTUM * state.prior + (1 - _MOMENTUM) * prior,
    )
    return state, metrics
