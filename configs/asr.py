"""A small Wav2Letter, trained by CTC on transcripts.

Run:   python -m svc_jax.train_asr --config=configs/asr.py --workdir=runs/asr \
           --config.data.tsv=corpus/transcripts.tsv
"""

import ml_collections


def get_config(variant: str = "base") -> ml_collections.ConfigDict:
    """`base`: about half an hour on two cores; `demo`: a minute, for syllables."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = ml_collections.ConfigDict()
    config.data.tsv = ""
    config.data.unit = "phones"  # or "letters"
    config.channels = 128
    config.wide_channels = 384
    config.learning_rate = 1e-3
    config.epsilon = 1e-8
    config.max_grad_norm = 1.0
    config.batch_seconds = 64.0
    config.num_steps = 5000
    config.log_every = 10
    config.checkpoint_every = 1000
    config.keep = 2
    if variant == "demo":
        config.channels = 32
        config.wide_channels = 64
        config.num_steps = 200
        config.batch_seconds = 48.0
        config.checkpoint_every = 200
    elif variant != "base":
        raise ValueError(f"configs/asr.py has base and demo, not {variant!r}.")
    return config
