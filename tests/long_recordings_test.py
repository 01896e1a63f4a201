"""Features in blocks against those of the whole recording."""

import numpy as np
import pytest

from data_pipeline import demo_corpus
from svc_jax import builders, weights
from svc_jax.features import FrozenParams
from svc_jax.geometry import FrameGeometry
from svc_jax.long_recordings import LongRecording


@pytest.fixture(scope="module")
def song() -> np.ndarray:
    """Ten seconds of a tenor, a pause of digital silence within."""
    audio = demo_corpus.render(
        demo_corpus.score(demo_corpus.make_song(5, 3)), demo_corpus.SINGERS[3]
    )[: 10 * 16_000]
    audio = np.concatenate([audio[:90_000], np.zeros(40_000, "f4"), audio[90_000:]])
    return np.pad(audio, (0, -audio.size % 320))[: 13 * 16_000 + 9600]


def in_blocks(extractor, frozen, audio, seconds: int):
    long = LongRecording(
        extractor, frozen, lambda a, b: audio[a:b], audio.size, block_seconds=seconds
    )
    extracted = long.extract()
    return extracted, np.concatenate(list(long.content()))


@pytest.fixture(scope="module", params=["yin", "yin, per coefficient", "crepe"])
def networks(request, wav2letter_file):
    wav2letter = weights.wav2letter(wav2letter_file)
    crepe = None
    if request.param == "crepe":
        data = request.getfixturevalue("test_data")
        crepe = weights.crepe("tiny", data / "weights" / "model-tiny.h5.bz2")
    config = {
        **wav2letter.config,
        "per_coefficient": request.param.endswith("coefficient"),
    }
    extractor = builders.extractor(FrameGeometry(), config, "wide", crepe and "tiny")
    return extractor, FrozenParams(crepe and crepe.params, wav2letter.params)


# A length of whole blocks, one that ends within a block, and less than a block.
@pytest.mark.parametrize(
    ("seconds", "num_samples"), [(3, 0), (4, 12 * 16_000), (20, 0)]
)
def test_features_in_blocks_are_those_of_the_whole(
    networks, song, seconds, num_samples
):
    extractor, frozen = networks
    audio = song[: num_samples or song.size]
    (whole,) = extractor.extract_recordings(frozen, [audio])
    extracted, content = in_blocks(extractor, frozen, audio, seconds)
    assert whole.features.f0_hz.any()
    np.testing.assert_allclose(extracted.asr_stats, whole.asr_stats, 1e-4, 1e-4)
    for name in ("f0_hz", "loudness_db"):
        np.testing.assert_allclose(
            getattr(extracted.features, name),
            getattr(whole.features, name),
            rtol=1e-4,
            atol=1e-3,
            err_msg=name,
        )
    np.testing.assert_allclose(extracted.f0_confidence, whole.f0_confidence, atol=1e-4)
    assert content.shape == whole.features.asr_features.shape
    np.testing.assert_allclose(content, whole.features.asr_features, atol=2e-3)
    assert np.abs(whole.features.asr_features).max() > 1


def test_a_higher_sample_rate_is_heard_in_blocks_too(wav2letter_file):
    wav2letter = weights.wav2letter(wav2letter_file)
    geometry = FrameGeometry.at(44_100, 441)
    extractor = builders.extractor(geometry, wav2letter.config, "wide", None)
    frozen = FrozenParams(None, wav2letter.params)
    rng = np.random.default_rng(0)
    turns = np.cumsum(220 + 40 * np.sin(np.arange(9 * 44_100) / 9000)) / 44_100
    audio = 0.3 * np.sin(2 * np.pi * turns) + 0.001 * rng.normal(size=turns.size)
    audio = audio.astype(np.float32)
    (whole,) = extractor.extract_recordings(frozen, [audio])
    extracted, content = in_blocks(extractor, frozen, audio, 3)
    assert extracted.features.f0_hz.shape == (900,)
    np.testing.assert_allclose(
        extracted.features.f0_hz, whole.features.f0_hz, rtol=1e-3
    )
    np.testing.assert_allclose(
        extracted.features.loudness_db, whole.features.loudness_db, atol=0.01
    )
    np.testing.assert_allclose(content, whole.features.asr_features, atol=5e-3)
