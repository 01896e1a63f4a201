"""Many singers, one generator: the paper's networks and its whole objective.

Run:   python -m svc_jax.train --config=configs/multi.py --workdir=runs/choir \
           --config.data.dir=datasets/choir
Demo:  python -m svc_jax.train --config=configs/multi.py:demo --workdir=runs/demo
       (the embedded corpus and small networks; minutes on two cores)
"""

import ml_collections

from configs import common


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """`paper`, `small` (a folder of recordings on a CPU) or `demo` (needs nothing)."""
    config = common.paper_config()
    if variant == "paper":
        return config
    if variant not in ("small", "demo"):
        raise ValueError(
            f"configs/multi.py has paper, small and demo, not {variant!r}."
        )
    config.batch_size = 4
    config.generator.channels = 24
    config.generator.gate_channels = 48
    config.generator.skip_channels = 24
    config.generator.dilations = tuple(2**k for k in range(10))
    config.generator.context_channels = 16
    config.generator.context_gate_channels = 32
    config.generator.loudness_dilations = (1, 2, 4)
    config.generator.asr_dilations = (1, 2, 4)
    config.generator.sine_dilations = (1, 2, 4, 8)
    config.discriminator.channels = 16
    config.optimizer.generator_learning_rate = 1e-3
    config.optimizer.discriminator_learning_rate = 5e-4
    config.num_steps = 4_000
    config.log_every = 10
    config.eval_every = 250
    config.checkpoint_every = 250
    if variant == "demo":
        config.data.embedded = True
        config.num_steps = 320
        # The later phases cost two and four times as much a step, and need thousands.
        config.phases.adversarial = 0.8
        config.phases.mixup = 0.95
        config.eval_every = 160
        config.checkpoint_every = 160
    return config
