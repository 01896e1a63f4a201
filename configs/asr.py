"""A small Wav2Letter, trained by CTC on transcripts.

Run:   python -m svc_jax.train_asr --config=configs/asr.py --workdir=runs/asr \
           --config.data.transcripts=corpus/transcripts.tsv
"""

import ml_collections


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """`base`: about half an hour on two cores; `demo`: a minute, for syllables."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = ml_collections.ConfigDict()
    config.data.transcripts = ""  # a table, or a folder in LibriSpeech's layout
    config.data.unit = "phones"  # or "letters"
    config.data.alphabet = ""  # what the split train uses, if empty
    config.network = ml_collections.ConfigDict()
    config.network.channels = 160
    config.network.wide_channels = 384
    # Shorter kernels than the published network's: it sees 2 s around a frame, and
    # learns a few hours of speech by heart.
    config.network.kernels = (12, 5, 5, 5, 5, 5)
    config.network.wide_kernel = 7
    config.dropout = 0.2
    config.perturbation = ml_collections.ConfigDict()
    config.perturbation.pitch = 1.25
    config.perturbation.formants = 1.15
    config.perturbation.speed = 1.15
    config.augmentation = ml_collections.ConfigDict()
    config.augmentation.noise = 0.2
    config.augmentation.num_masks = 4
    config.augmentation.longest_mask = 15
    config.learning_rate = 2e-3
    config.b2 = 0.98
    config.weight_decay = 0.01
    config.max_grad_norm = 1.0
    config.batch_seconds = 64.0
    config.max_buckets = 6  # shapes of batches, each compiled once
    config.num_steps = 4000
    config.log_every = 10
    config.checkpoint_every = 500
    config.keep = 2
    if variant == "demo":
        config.network.channels = 32
        config.network.wide_channels = 64
        config.network.kernels = (12, 5, 5)
        config.network.wide_kernel = 5
        config.dropout = 0.0
        config.perturbation.pitch = 1.0
        config.perturbation.formants = 1.0
        config.perturbation.speed = 1.0
        config.augmentation.noise = 0.1
        config.augmentation.num_masks = 0
        config.learning_rate = 2e-3
        config.max_buckets = 1
        config.num_steps = 800
        config.batch_seconds = 48.0
        config.checkpoint_every = 400
    elif variant != "base":
        raise ValueError(f"configs/asr.py has base and demo, not {variant!r}.")
    return config
