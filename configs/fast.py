"""Many singers on a CPU: a source-filter generator at the frame rate, same objective.

Run:   python -m svc_jax.train --config=configs/fast.py --workdir=runs/choir \
           --config.data.dir=datasets/choir     (prepared with --hop_length=160)
44.1k: python -m svc_jax.train --config=configs/fast.py:44k --workdir=runs/choir44 \
           --config.data.dir=datasets/choir44   (prepared with --sample_rate=44100)
Demo:  python -m svc_jax.train --config=configs/fast.py:demo --workdir=runs/demo
"""

import ml_collections

from configs import common


def get_config(variant: str = "16k") -> ml_collections.ConfigDict:
    """`16k`, `44k` (the same at 44.1 kHz) or `demo` (needs nothing)."""
    if variant not in ("16k", "44k", "demo"):
        raise ValueError(f"configs/fast.py has 16k, 44k and demo, not {variant!r}.")
    config = common.paper_config()
    config.num_steps = 20_000
    config.batch_size = 8

    config.geometry.hop_length = 160  # 100 Hz
    if variant == "44k":
        config.geometry.sample_rate = 44_100
        config.geometry.hop_length = 441
        config.geometry.asr_hop_length = 882
        config.geometry.segment_samples = 44_100

    config.generator = ml_collections.ConfigDict()
    config.generator.name = "source_filter"
    config.generator.embedding_size = 64
    config.generator.channels = 256
    config.generator.num_blocks = 8
    config.generator.kernel_size = 7
    config.generator.lookahead = 1
    config.generator.expansion = 3
    config.generator.harmonics = True

    config.discriminator = ml_collections.ConfigDict()
    config.discriminator.name = "multi"
    config.discriminator.periods = (2, 3, 5, 7, 11)
    config.discriminator.period_channels = (16, 32, 64, 64)
    config.discriminator.fft_sizes = (2048, 1024, 512)
    config.discriminator.spectrum_channels = (16, 32, 32)

    config.loss.weights.adversarial = 0.5
    config.loss.weights.matching = 1.0

    config.optimizer.generator_learning_rate = 1e-3
    config.optimizer.discriminator_learning_rate = 5e-4
    config.log_every = 20
    config.eval_every = 500
    config.checkpoint_every = 500
    if variant == "demo":
        config.data.embedded = True
        config.batch_size = 4
        config.num_steps = 400
        # Fewer and narrower judges, and late: each phase is compiled, and the later
        # ones cost several times as much a step.
        config.discriminator.periods = (2, 3, 7)
        config.discriminator.fft_sizes = (1024, 256)
        config.discriminator.spectrum_channels = (8, 16, 16)
        config.phases.adversarial = 0.8
        config.phases.mixup = 1.0  # its compilation alone would be a tenth of the demo
        config.log_every = 10
        config.eval_every = 200
        config.checkpoint_every = 200
    return config
