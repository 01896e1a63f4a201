"""From configs to modules: every value arrives, impossible ones are refused."""

import json
import types

import jax
import ml_collections
import numpy as np
import pytest

from configs import fast, multi, single
from svc_jax import builders
from svc_jax.errors import UserError
from svc_jax.geometry import FrameGeometry
from svc_jax.models import convolutions, fused_layers
from svc_jax.models.crepe import Crepe

WAV2LETTER = {"channels": 8, "wide_channels": 12, "num_labels": 5, "labels": ["a"]}


def changed(**changes) -> ml_collections.ConfigDict:
    config = multi.get_config("small")
    config.lock()
    config.update_from_flattened_dict(changes)
    return config


def as_loaded(config) -> ml_collections.ConfigDict:
    """A config as a workdir's JSON gives it back: lists for tuples."""
    return ml_collections.ConfigDict(json.loads(config.to_json_best_effort()))


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("configs", "variant"),
    [
        *((multi, variant) for variant in ("paper", "small", "demo")),
        *((fast, variant) for variant in ("16k", "44k", "demo")),
    ],
)
def test_every_value_of_a_section_reaches_its_module(configs, variant):
    config = configs.get_config(variant)
    for section, module in (
        (config.generator, builders.generator(config, 3)),
        (config.discriminator, builders.discriminator(config)),
    ):
        for name in set(section) - {"name"}:
            assert getattr(module, name) == section[name], name
    generator = builders.generator(config, 3)
    assert generator.num_singers == 3
    assert generator.sample_rate == config.geometry.sample_rate
    assert generator.hop_length == config.geometry.hop_length


def test_a_config_that_was_saved_builds_the_same_run():
    config = multi.get_config("demo")
    again = as_loaded(config)
    assert isinstance(again.generator.dilations, list | tuple)
    for build in (
        lambda c: builders.generator(c, 3),
        builders.discriminator,
        builders.geometry,
        builders.objective,
        lambda c: builders.extractor(builders.geometry(c), WAV2LETTER, "wide", "tiny"),
    ):
        assert build(again) == build(config)
    # Modules are arguments of jit that it compares.
    assert hash(builders.generator(again, 3)) == hash(builders.generator(config, 3))


def test_geometry_is_the_configs():
    config = changed(**{"geometry.segment_samples": 6400})
    assert builders.geometry(config) == FrameGeometry(16_000, 64, 320, 6400)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "geometry.segment_samples",
            16_001,
            "segment_samples 16001 must be a multiple",
        ),
        ("geometry.asr_hop_length", 100, "asr_hop_length 100 must be a multiple"),
        ("geometry.sample_rate", 0, "sample_rate is 0; it must be positive"),
    ],
)
def test_impossible_grids_are_refused(key, value, said):
    config = changed(**{key: value})
    assert refusal(builders.geometry, config).startswith(f"config.geometry: {said}")


@pytest.mark.parametrize(
    ("section", "build", "known"),
    [
        ("generator", lambda c: builders.generator(c, 2), "wavenet, source_filter"),
        ("discriminator", builders.discriminator, "wavenet, multi"),
    ],
)
def test_unknown_modules_are_refused_with_the_known_ones(section, build, known):
    config = changed(**{f"{section}.name": "transformer"})
    line = f"config.{section}.name is 'transformer'; choose one of {known}."
    assert refusal(build, config) == line


@pytest.mark.parametrize(
    ("key", "factors", "said"),
    [
        ("loudness_factors", (4, 4), "(4, 4) give 16; the hop is 64 samples."),
        ("asr_factors", (4, 4, 4, 4), "(4, 4, 4, 4) give 256; the hop is 320 samples."),
    ],
)
def test_upsampling_that_misses_the_audio_rate_is_refused(key, factors, said):
    config = changed(**{f"generator.{key}": factors})
    line = refusal(builders.generator, config, 2)
    assert line == f"config.generator.{key} {said}"


def test_a_source_filter_that_cannot_align_its_source_is_refused():
    config = fast.get_config()
    config.generator.num_blocks, config.generator.lookahead = 1, 1
    line = refusal(builders.generator, config, 2)
    assert line.startswith("config.generator.num_blocks 1 of lookahead 1 see less than")
    config.generator.num_blocks, config.generator.lookahead = 3, 7
    line = refusal(builders.generator, config, 2)
    assert line == "config.generator.lookahead 7 must be below kernel_size 7."


def test_extractor_is_what_the_weights_are_for():
    geometry = FrameGeometry()
    extractor = builders.extractor(geometry, WAV2LETTER, "wide", "full", 64)
    assert (extractor.asr_size, extractor.f0_hop) == (12, 64)
    assert extractor.crepe == Crepe("full")
    assert extractor.wav2letter.num_labels == 5
    by_yin = builders.extractor(geometry, WAV2LETTER, "hidden", None)
    assert by_yin.crepe is None
    assert by_yin.asr_size == 8


def test_phases_start_at_their_shares_of_the_run():
    config = changed(num_steps=1000)
    config.phases.adversarial, config.phases.mixup = 0.25, 0.6

    def names(step, num_singers):
        phase = builders.phase_at(config, num_singers, step)
        flags = ("adversarial", "unaligned", "mixup")
        return [name for name in flags if getattr(phase, name)]

    assert names(0, 2) == names(249, 2) == []
    assert names(250, 2) == names(599, 2) == ["adversarial", "unaligned"]
    assert names(600, 2) == names(999, 2) == ["adversarial", "unaligned", "mixup"]
    assert names(999, 1) == ["adversarial"]


def test_paper_schedule_is_that_of_the_paper():
    config = multi.get_config("paper")
    starts = [0, 99_999, 100_000, 266_666, 266_667]
    passes = [len(builders.phase_at(config, 6, step).passes) for step in starts]
    assert passes == [1, 1, 2, 2, 3]
    optimizers = builders.run_optimizers(config)
    steps = np.array([0, 199_999, 200_000, 399_999])
    np.testing.assert_allclose(
        optimizers.generator_rate(steps), [1e-4, 1e-4, 5e-5, 5e-5], rtol=1e-6
    )
    np.testing.assert_allclose(
        optimizers.discriminator_rate(steps), [5e-5, 5e-5, 2.5e-5, 2.5e-5], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "limit"), [("generator", 10.0), ("discriminator", 1.0)]
)
def test_each_optimizer_clips_at_its_own_norm(name, limit):
    optimizer = getattr(builders.run_optimizers(multi.get_config()), name)
    params = {"w": np.zeros(4, np.float32)}

    def first_update(size):
        grads = {"w": np.full(4, size, np.float32)}
        return optimizer.update(grads, optimizer.init(params), params)[0]["w"]

    # Four equal gradients have twice the norm of one; RAdam starts as momentum.
    assert np.array_equal(first_update(limit), first_update(100 * limit))
    assert not np.array_equal(first_update(limit / 2.1), first_update(limit))


def test_objective_is_the_configs():
    config = changed(**{"loss.weights.pitch": 0.0, "loss.content_layer": "wide"})
    objective = builders.objective(config)
    assert objective.weights == {
        "spectral": 1.0,
        "adversarial": 2.5,
        "matching": 0.0,
        "pitch": 0.0,
        "content": 1.0,
    }
    assert objective.fft_sizes == (2048, 1024, 512, 256, 128, 64)
    assert (objective.content_layer, objective.ema_decay) == ("wide", 0.999)


def test_single_singer_config_has_no_embedding():
    config = single.get_config()
    networks = builders.networks(
        config,
        1,
        builders.extractor(builders.geometry(config), WAV2LETTER, "wide", None),
    )
    voice = networks.generator.apply({}, jax.numpy.zeros(3, int), method="embed")
    assert voice.shape == (3, 0)
    assert networks.discriminator == builders.discriminator(multi.get_config())


def test_the_single_singer_setting_refuses_several():
    config = single.get_config()
    assert builders.generator(config, 1).embedding_size == 0
    with pytest.raises(UserError, match=r"has 3 singers; train on it with configs/mul"):
        builders.generator(config, 3)


def chip(kind: str):
    return types.SimpleNamespace(platform="tpu", device_kind=kind)


def paper_networks(device, **changes):
    config = multi.get_config("paper")
    config.update_from_flattened_dict({"precision": "bfloat16", **changes})
    extractor = builders.extractor(builders.geometry(config), WAV2LETTER, "wide", None)
    return builders.networks(config, 3, extractor, device)


def test_tpus_with_room_for_a_segment_compute_its_layers_at_once():
    networks = paper_networks(chip("TPU v5 lite"))
    assert networks.generator.gated_layers is fused_layers.fused
    assert networks.discriminator.convolution is convolutions.convolve_as_product


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("TPU v4", {}, "the device is TPU v4"),
        ("TPU v5 lite", {"precision": "float32"}, "precision is 'float32'"),
        ("TPU v5", {"geometry.segment_samples": 32_000}, "longer than 16000"),
        ("TPU v6 lite", {"generator.channels": 32}, "channels is 32, not 64"),
    ],
)
def test_other_layers_are_products_on_tpus(kind, changes, why):
    networks = paper_networks(chip(kind), **changes)
    assert networks.generator.gated_layers is None
    assert networks.generator.convolution is convolutions.convolve_as_product
    said = refusal(lambda: paper_networks(chip(kind), convolution="fused", **changes))
    assert why in said and "'auto'" in said


def test_elsewhere_convolutions_are_convolutions():
    networks = paper_networks(None)
    assert networks.generator.convolution is convolutions.convolve
    assert "the device is cpu" in refusal(
        lambda: paper_networks(None, convolution="fused")
    )
    assert "auto, direct, product, fused" in refusal(
        lambda: paper_networks(None, convolution="winograd")
    )
