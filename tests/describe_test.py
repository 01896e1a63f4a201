"""The table of a run's networks, against sums by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fast, multi, single
from svc_jax import describe, train
from svc_jax.models.layers import Conv


class Part(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Conv(7, 3, dilation=2, name="wide")(Conv(5, name="narrow")(x))


class Whole(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Part(name="part")(x)
        x = jax.lax.map(lambda row: row @ jnp.ones((7, 11)), x)
        return nn.Dense(3, name="last")(x)


def test_multiply_adds_are_counted_by_part():
    whole, audio = Whole(), jnp.zeros((2, 50, 4))
    params = jax.eval_shape(whole.init, jax.random.key(0), audio)["params"]
    apply = jax.jit(lambda p: whole.apply({"params": p}, audio))
    counts = describe.multiply_adds(jax.make_jaxpr(apply)(params))
    samples = 2 * 50
    assert counts["part"] == samples * (4 * 5 + 3 * 5 * 7)
    assert counts["last"] == samples * 11 * 3
    # The body of a loop stands once in a program, but runs for both rows.
    assert sum(counts.values()) == samples * (20 + 105 + 7 * 11 + 33)


def test_parameters_are_counted():
    tree = {"a": np.zeros((3, 4)), "b": {"c": jax.ShapeDtypeStruct((5,), "float32")}}
    assert describe.num_parameters(tree) == 17


def rows(text: str) -> dict[str, dict]:
    """The table's rows: name -> parameters, rate, reach in samples, GFLOP."""
    found = {}
    for line in text.splitlines()[1:]:
        name, count, *middle, cost = line.split()
        found[name] = {
            "parameters": int(count.replace(",", "")),
            "rate": float(middle[0]) if "Hz" in middle else None,
            "reach": int(middle[middle.index("=") - 1]) if "=" in middle else None,
            "cost": float(cost),
        }
    return found


@pytest.fixture(scope="module")
def paper() -> dict[str, dict]:
    return rows(train.describe(multi.get_config("paper")))


def stack(in_channels: int, num_layers: int) -> dict[str, int]:
    """Weights, output channels and layers' channels of a context stack of 64/128."""
    kernels = in_channels * 64 + num_layers * (3 * 64 * 128 + 64 * 64)
    channels = 64 + num_layers * (128 + 64)
    return {"kernels": kernels, "parameters": kernels + 2 * channels}


def test_wavenet_of_the_paper(paper):
    condition, voice = 3 * 64, 64
    layer = 3 * 64 * 128 + (condition + voice) * 128 + 2 * 64 * 64
    kernels = 64 + 30 * layer + 64 * 64 + 64
    # A bias and a scale per channel of each convolution; the condition's has no bias.
    channels = 64 + 30 * (128 + 2 * 64) + 64 + 1
    assert paper["wavenet"]["parameters"] == kernels + 2 * channels + 30 * 128
    as_written = 2 * 16_000 * kernels / 1e9
    assert round(as_written) == 63  # method.md, section 2
    # Ours projects the voice once, not for every sample.
    saved = voice * 128 * 2 * 16_000 * 30 / 1e9
    assert paper["wavenet"]["cost"] == pytest.approx(as_written - saved, abs=0.01)
    assert (paper["wavenet"]["rate"], paper["wavenet"]["reach"]) == (16_000, 6139)


@pytest.mark.parametrize(
    ("name", "in_channels", "rate", "frames"),
    [
        ("sine_context", 1, 16_000, 1 + 2 * 2 * 255),
        ("loudness_context", 1, 250, 1 + 2 * 4 * 15),
        ("asr_context", 2000, 50, 1 + 2 * 8 * 3),
    ],
)
def test_context_stacks_of_the_paper(paper, name, in_channels, rate, frames):
    expected = stack(in_channels, 16)
    cost = 2 * rate * expected["kernels"] / 1e9
    assert paper[name]["parameters"] == expected["parameters"]
    assert paper[name]["cost"] == pytest.approx(cost, abs=0.005)
    assert paper[name]["rate"] == rate
    assert paper[name]["reach"] == frames * 16_000 // rate
    if name == "sine_context":
        assert round(cost) == 15  # method.md, section 2


def test_generator_of_the_paper_is_the_sum_of_its_parts(paper):
    parts = ["asr_context", "loudness_context", "sine_context", "wavenet"]
    smoothing = 3 * 9 + (3 * 9 + 11)
    table_of_two_singers = 2 * 64
    assert paper["WaveNetGenerator"]["parameters"] == (
        sum(paper[part]["parameters"] for part in parts)
        + smoothing
        + table_of_two_singers
    )
    cost = sum(paper[part]["cost"] for part in parts)
    assert paper["WaveNetGenerator"]["cost"] == pytest.approx(cost, abs=0.03)


def test_other_networks_of_the_paper(paper):
    # method.md gives the discriminator's without the scales of weight norm.
    assert paper["WaveNetDiscriminator"]["parameters"] == 99_265 + 9 * 64 + 1
    assert paper["WaveNetDiscriminator"]["reach"] == 77
    kernels = 3 * 64 + 8 * 3 * 64 * 64 + 3 * 64
    cost = 2 * 16_000 * kernels / 1e9
    assert paper["WaveNetDiscriminator"]["cost"] == pytest.approx(cost, abs=0.005)
    assert paper["Wav2Letter"]["parameters"] == 23_594_529
    assert paper["Crepe"]["parameters"] == 487_096
    assert (paper["Crepe"]["rate"], paper["Crepe"]["reach"]) == (100, 1024)
    # The taps that lie on the padding are counted too.
    assert paper["Crepe"]["cost"] == pytest.approx(100 * 0.074, abs=0.4)


def test_single_singer_setting_has_no_voice_to_project(paper):
    alone = rows(train.describe(single.get_config()))
    voice = 64 * 128  # of each layer's projection
    assert alone["wavenet"]["parameters"] == paper["wavenet"]["parameters"] - 30 * voice
    assert alone["wavenet"]["cost"] == pytest.approx(paper["wavenet"]["cost"], abs=0.01)
    for part in ("asr_context", "loudness_context", "sine_context", "Wav2Letter"):
        assert alone[part] == paper[part]


def test_the_networks_of_a_dataset_are_those_that_made_it(tiny_config):
    table = rows(train.describe(tiny_config()))
    first, second = 6 * 39 * 8 + 8, 3 * 8 * 8 + 8
    wide, output = (4 * 8 * 12 + 12) + (12 * 12 + 12), 12 * 5 + 5
    assert table["Wav2Letter"]["parameters"] == first + second + wide + output
    layer = 3 * 4 * 8 + 2 * 8 + 4 * 4 + 2 * 4
    assert table["asr_context"]["parameters"] == 12 * 4 + 2 * 4 + layer


def test_the_fast_generator_is_the_sum_of_its_parts():
    found = rows(train.describe(fast.get_config()))
    parts = [name for name in found if name.startswith(("blocks", "filters"))]
    parts += ["content", "prosody"]
    assert len(parts) == 8 + 3
    whole = found["SourceFilterGenerator"]
    # A frame's products: two layers of 3 x 256 channels in each block, then 4 curves.
    # The content comes half as often.
    products = 8 * 2 * 256 * 768 + 256 * 4 * 321 + 3 * 256 + 2000 * 256 / 2
    assert whole["cost"] == pytest.approx(2 * products * 100 / 1e9, abs=0.01)
    assert sum(found[name]["cost"] for name in parts) == pytest.approx(
        whole["cost"], abs=0.02
    )
    # All frames that a block sees, 8 times over, and those that overlap.
    assert found["content"]["rate"] == 50
    assert whole["reach"] == (8 * 6 + 4) * 160
    singers = 2 * 64
    assert whole["parameters"] == singers + sum(found[p]["parameters"] for p in parts)


def test_two_dimensional_kernels_are_counted_whole():
    conv = nn.Conv(5, (3, 7), name="plane")
    image = jnp.zeros((1, 20, 30, 4))
    params = jax.eval_shape(conv.init, jax.random.key(0), image)
    counts = describe.multiply_adds(jax.make_jaxpr(conv.apply)(params, image))
    assert sum(counts.values()) == 20 * 30 * 5 * (3 * 7 * 4)
