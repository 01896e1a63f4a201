"""A small Wav2Letter, trained by CTC on transcripts.

Run:   python -m svc_jax.train_asr --config=configs/asr.py --workdir=runs/asr \
           --config.data.transcripts=corpus/transcripts.tsv
"""

import ml_collections


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """`base`: two hours of one core; `demo`: a minute, for syllables."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = ml_collections.ConfigDict()
    config.data.transcripts = ""  # a table, or a folder in LibriSpeech's layout
    config.data.unit = "phones"  # or "letters"
    config.data.alphabet = ""  # what the split train uses, if empty
    config.network = ml_collections.ConfigDict()
    # Far narrower kernels than the published network's: what sees much more than 0.2 s
    # to each side takes long to find out which of it is the label.
    config.network.channels = 192
    config.network.wide_channels = 512
    config.network.kernels = (12, 3, 3, 3)
    config.network.wide_kernel = 3
    config.network.per_coefficient = True  # see dsp.mfcc_stats
    config.prior_scale = 0.25  # see asr_steps.plain_params
    config.dropout = 0.0  # norms remember what dropout does, and miss it afterwards
    config.perturbation = ml_collections.ConfigDict()
    config.perturbation.pitch = 1.25
    config.perturbation.formants = 1.15
    config.perturbation.speed = 1.15
    config.augmentation = ml_collections.ConfigDict()
    config.augmentation.noise = 0.1
    config.augmentation.num_masks = 2
    config.augmentation.longest_mask = 12
    config.learning_rate = 2e-3
    config.b2 = 0.98
    config.weight_decay = 0.01
    config.max_grad_norm = 1.0
    config.batch_seconds = 64.0
    config.max_buckets = 5  # shapes of batches, each compiled once
    config.num_steps = 10_000
    config.log_every = 10
    config.checkpoint_every = 1000
    config.keep = 2
    if variant == "demo":
        config.network.channels = 32
        config.network.wide_channels = 64
        config.network.kernels = (12, 5, 5)
        config.network.wide_kernel = 5
        # Of few voices in one room the spectrum as it is says more: 2 % errors for 11 %.
        config.network.per_coefficient = False
        config.prior_scale = 0.0
        config.perturbation.pitch = 1.0
        config.perturbation.formants = 1.0
        config.perturbation.speed = 1.0
        config.augmentation.num_masks = 0
        config.max_buckets = 1
        config.num_steps = 800
        config.batch_seconds = 48.0
        config.checkpoint_every = 400
    elif variant != "base":
        raise ValueError(f"configs/asr.py has base and demo, not {variant!r}.")
    return config
