"""From a config to modules and optimisers; below this, no function sees a config."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from svc_jax import optimizers, steps
from svc_jax.errors import UserError
from svc_jax.features import FeatureExtractor
from svc_jax.geometry import FrameGeometry
from svc_jax.models.convolutions import CONVOLUTIONS
from svc_jax.models.crepe import Crepe
from svc_jax.models.discriminators import MultiDiscriminator, WaveNetDiscriminator
from svc_jax.models.layers import REMAT
from svc_jax.models.source_filter import SourceFilterGenerator
from svc_jax.models.wav2letter import Wav2Letter
from svc_jax.models.wavenet import WaveNetGenerator

GENERATORS = {"wavenet": WaveNetGenerator, "source_filter": SourceFilterGenerator}
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
DISCRIMINATORS = {"wavenet": WaveNetDiscriminator, "multi": MultiDiscriminator}


def geometry(config) -> FrameGeometry:
    """Raises UserError for impossible rates and lengths."""
    try:
        return FrameGeometry(**config.geometry)
    except ValueError as error:
        raise UserError(f"config.geometry: {error}") from error


def _arguments(section) -> dict:
    """Fields of a module: what a config section holds beside `name`, tuples for lists."""
    return {
        key: tuple(value) if isinstance(value, list | tuple) else value
        for key, value in section.items()
        if key != "name"
    }


def _named(choices: dict, key: str, name: str):
    if name not in choices:
        known = ", ".join(choices)
        raise UserError(f"config.{key} is {name!r}; choose one of {known}.")
    return choices[name]


def generator(config, num_singers: int):
    """The generator that config.generator.name names.

    Raises:
      UserError: for an unknown name, several singers without an embedding, or a
        generator that does not fit the geometry.
    """
    if num_singers > 1 and not config.generator.embedding_size:
        raise UserError(
            f"config.generator.embedding_size is 0, but the dataset has {num_singers}"
            " singers; train on it with configs/multi.py."
        )
    grid = geometry(config)
    module = _named(GENERATORS, "generator.name", config.generator.name)(
        num_singers=num_singers,
        sample_rate=grid.sample_rate,
        hop_length=grid.hop_length,
        **_arguments(config.generator),
    )
    try:
        module.check(grid)
    except ValueError as error:
        raise UserError(f"config.generator.{error}") from error
    return module


def discriminator(config):
    """The discriminator that config.discriminator.name names.

    Raises:
      UserError: for an unknown name.
    """
    return _named(DISCRIMINATORS, "discriminator.name", config.discriminator.name)(
        **_arguments(config.discriminator)
    )


def wav2letter(config: dict) -> Wav2Letter:
    """The content network that weights are for; {} is the published one's.

    The weights' `labels` are not its business.
    """
    fields = {key: value for key, value in config.items() if key != "labels"}
    return Wav2Letter(**_arguments(fields))


def extractor(
    geometry: FrameGeometry,
    wav2letter_config: dict,
    asr_layer: str,
    crepe: str | None,
    f0_hop: int = 160,
) -> FeatureExtractor:
    """The frozen networks as one.

    Args:
      geometry: grids of the features.
      wav2letter_config: of its weights.
      asr_layer: whose activations are the ASR features.
      crepe: a capacity, or None for YIN.
      f0_hop: samples between two estimates of f0.
    """
    pitch = Crepe(crepe) if crepe else None
    network = wav2letter(wav2letter_config)
    return FeatureExtractor(geometry, pitch, network, asr_layer, f0_hop)


def networks(
    config, num_singers: int, extractor: FeatureExtractor, device=None
) -> steps.Networks:
    """All modules of a run, as they compute in training.

    Args:
      config: of the run.
      num_singers: of the dataset.
      extractor: the frozen networks.
      device: on one like which they are to compute; by default JAX's own.

    Raises:
      UserError: for a name that config.precision, config.remat or config.convolution
        cannot have, or a convolution that the device or the generator cannot have.
    """
    singing = generator(config, num_singers)
    # Not lax.platform_dependent, as CREPE has it: jax2onnx does not know that.
    computed = {
        "dtype": _named(PRECISIONS, "precision", config.precision),
        "remat": _named(REMAT, "remat", config.remat),
        **_convolution(config, singing, device or jax.devices()[0]),
    }

    def computing(module):
        fields = {field.name for field in dataclasses.fields(module)}
        return module.clone(**{k: v for k, v in computed.items() if k in fields})

    return steps.Networks(
        computing(singing), computing(discriminator(config)), extractor
    )


def _convolution(config, singing, device) -> dict:
    """How dilated convolutions are computed, as fields of modules."""
    missing = _missing_for_fused(config, singing, device)
    if device.platform != "tpu":
        fastest = "direct"  # by what launch/PERFORMANCE.md measures
    else:
        fastest = "product" if missing else "fused"
    name = _named(
        {"auto": fastest, **{way: way for way in (*CONVOLUTIONS, "fused")}},
        "convolution",
        config.convolution,
    )
    if name != "fused":
        return {"convolution": CONVOLUTIONS[name]}
    if missing:
        raise UserError(f"config.convolution is 'fused', but {missing}; choose 'auto'.")
    from svc_jax.models import fused_convolutions, fused_layers

    return {
        "convolution": CONVOLUTIONS["product"],
        "gated_layers": fused_layers.fused,
        "leaky_layers": fused_convolutions.fused,
    }


FUSED_CHANNELS = 64  # two of which fill the registers of a TPU
FUSED_SAMPLES = 16_000  # of a segment, in the 64 MiB that a core of v5p has
WITHOUT_MEMORY = ("TPU v2", "TPU v3", "TPU v4")  # their cores have 16 MiB


def _missing_for_fused(config, singing, device) -> str:
    """Why layers cannot be computed by models.fused_layers; "" if they can."""
    if device.platform != "tpu" or device.device_kind.startswith(WITHOUT_MEMORY):
        return f"the device is {device.device_kind}, no TPU of v5 or later"
    if config.precision != "bfloat16":
        return f"config.precision is {config.precision!r}, not 'bfloat16'"
    if config.geometry.segment_samples > FUSED_SAMPLES:
        return f"segments are longer than {FUSED_SAMPLES} samples"
    needed = {
        "kernel_size": 3,
        **dict.fromkeys(
            ("channels", "skip_channels", "context_channels"), FUSED_CHANNELS
        ),
        **dict.fromkeys(("gate_channels", "context_gate_channels"), 2 * FUSED_CHANNELS),
    }
    for name, value in needed.items():
        if (found := getattr(singing, name, None)) != value:
            return f"config.generator.{name} is {found}, not {value}"
    judging = config.discriminator
    for name in ("channels", "kernel_size"):
        if (found := judging.get(name, needed[name])) != needed[name]:
            return f"config.discriminator.{name} is {found}, not {needed[name]}"
    return ""


def run_optimizers(config) -> steps.Optimizers:
    """RAdam with clipping and halving, for G and for D."""
    section = config.optimizer
    every = max(1, int(config.num_steps * section.halve_every))
    return steps.Optimizers(
        generator=optimizers.clipped_radam(
            section.generator_max_grad_norm, section.epsilon
        ),
        discriminator=optimizers.clipped_radam(
            section.discriminator_max_grad_norm, section.epsilon
        ),
        generator_rate=optimizers.halving(section.generator_learning_rate, every),
        discriminator_rate=optimizers.halving(
            section.discriminator_learning_rate, every
        ),
    )


def objective(config) -> steps.Objective:
    """Weights and settings of the loss terms."""
    section = config.loss
    layers = ("hidden", "wide", "logits")
    if section.content_layer not in layers:
        raise UserError(
            f"config.loss.content_layer is {section.content_layer!r}; choose one of"
            f" {', '.join(layers)}."
        )
    return steps.Objective(
        weights=section.weights.to_dict(),
        fft_sizes=tuple(section.fft_sizes),
        content_layer=section.content_layer,
        ema_decay=config.optimizer.ema_decay,
    )


def train_step(config, networks: steps.Networks, optimizers, phase: steps.Phase):
    """steps.train_step of a run in a phase, what is fixed for a compiled step given."""
    return functools.partial(
        steps.train_step,
        networks,
        optimizers,
        objective(config),
        phase,
        accumulate=config.accumulate,
    )


def phase_at(config, num_singers: int, step: int) -> steps.Phase:
    """The phase of an update: the config's shares of the run, as steps."""
    return steps.phase_at(
        step,
        adversarial_from=round(config.phases.adversarial * config.num_steps),
        mixup_from=round(config.phases.mixup * config.num_steps),
        num_singers=num_singers,
    )
