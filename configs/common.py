"""What the paper's two settings share; the default values of method.md."""

import ml_collections


def paper_config() -> ml_collections.ConfigDict:
    """The paper's networks, objective and schedule at 16 kHz."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.num_steps = 400_000
    config.batch_size = 16  # over all devices
    config.num_model = 1  # devices along the mesh's `model` axis
    config.accumulate = 1  # parts of a batch that are computed one after the other
    config.precision = "float32"  # or bfloat16: of the layers; the losses are float32
    config.remat = "none"  # or dots, full: what the backward pass computes again
    config.convolution = "auto"  # direct or product, as is faster on the device

    config.data = ml_collections.ConfigDict()
    config.data.dir = ""  # a dataset made by data_pipeline.prepare
    config.data.loader = "tf"  # or grain, for a dataset of array_record
    config.data.balance = "none"  # or singer, pitch: what is drawn equally often
    config.data.embedded = False  # make the embedded corpus instead, in the workdir

    config.geometry = ml_collections.ConfigDict()
    config.geometry.sample_rate = 16_000
    config.geometry.hop_length = 64
    config.geometry.asr_hop_length = 320
    config.geometry.segment_samples = 16_000

    config.generator = ml_collections.ConfigDict()
    config.generator.name = "wavenet"
    config.generator.embedding_size = 64
    config.generator.channels = 64
    config.generator.gate_channels = 128
    config.generator.skip_channels = 64
    config.generator.kernel_size = 3
    config.generator.dilations = tuple(2**k for k in range(10)) * 3
    config.generator.context_channels = 64
    config.generator.context_gate_channels = 128
    config.generator.loudness_dilations = (1, 2, 4, 8) * 4
    config.generator.asr_dilations = (1, 2) * 8
    config.generator.sine_dilations = tuple(2**k for k in range(8)) * 2
    config.generator.loudness_factors = (4, 4, 4)
    config.generator.asr_factors = (4, 4, 4, 5)
    config.generator.num_harmonics = 0

    config.discriminator = ml_collections.ConfigDict()
    config.discriminator.name = "wavenet"
    config.discriminator.channels = 64
    config.discriminator.kernel_size = 3
    config.discriminator.dilations = (1, 1, 2, 3, 4, 5, 6, 7, 8, 1)

    config.loss = ml_collections.ConfigDict()
    config.loss.weights = ml_collections.ConfigDict()
    config.loss.weights.spectral = 1.0
    config.loss.weights.adversarial = 2.5  # alpha
    config.loss.weights.matching = 0.0  # feature matching; the paper has none
    config.loss.weights.pitch = 1.0  # beta
    config.loss.weights.content = 1.0  # gamma
    config.loss.fft_sizes = (2048, 1024, 512, 256, 128, 64)
    config.loss.content_layer = "hidden"

    config.phases = ml_collections.ConfigDict()  # starts, as shares of the run
    config.phases.adversarial = 1 / 4  # D and the unaligned terms
    config.phases.mixup = 2 / 3

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.generator_learning_rate = 1e-4
    config.optimizer.discriminator_learning_rate = 5e-5
    config.optimizer.halve_every = 1 / 2  # of the run
    config.optimizer.epsilon = 1e-6
    config.optimizer.generator_max_grad_norm = 10.0
    config.optimizer.discriminator_max_grad_norm = 1.0
    config.optimizer.ema_decay = 0.999

    config.log_every = 100
    config.eval_every = 5_000
    config.eval_batches = 8  # at most, of recordings from all over the split
    config.checkpoint_every = 5_000
    config.keep = 3  # the last ones; the best one stays too
    config.keep_every = 100_000  # and those whose step is a multiple; 0: none

    config.guard = ml_collections.ConfigDict()
    config.guard.in_a_row = 10  # updates not finite: back to the newest checkpoint
    config.guard.rollbacks = 3  # after so many, give up
    return config
