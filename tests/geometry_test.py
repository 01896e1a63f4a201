"""The grids of audio, frames and ASR frames."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from svc_jax.geometry import FrameGeometry

GRID = FrameGeometry()


def test_rates_and_a_segment_are_those_of_the_paper():
    assert (GRID.sample_rate, GRID.hop_length, GRID.asr_hop_length) == (16_000, 64, 320)
    assert (GRID.frame_rate, GRID.asr_frame_rate) == (250, 50)
    assert (GRID.segment_samples, GRID.segment_frames) == (16_000, 250)
    assert GRID.segment_asr_frames == 50


@pytest.mark.parametrize(
    ("num_samples", "padded"),
    [(0, 320), (1, 320), (320, 320), (321, 640), (16_000, 16_000), (16_001, 16_320)],
)
def test_audio_is_padded_to_the_next_whole_asr_frame(num_samples, padded):
    assert GRID.padded_length(num_samples) == padded


@given(
    num_samples=st.integers(1, 10**9),
    hop_ms=st.sampled_from([1, 2, 4, 5, 10, 20]),
    sample_rate=st.sampled_from([16_000, 24_000, 32_000, 44_100, 48_000]),
)
def test_frames_cover_the_padded_audio_exactly(num_samples, hop_ms, sample_rate):
    hop_length, rest = divmod(sample_rate * hop_ms, 1000)
    assume(not rest)
    asr_hop_length = sample_rate // 50
    grid = FrameGeometry(sample_rate, hop_length, asr_hop_length, asr_hop_length)
    padded = grid.padded_length(num_samples)
    assert num_samples <= padded < num_samples + asr_hop_length
    assert grid.num_frames(padded) * hop_length == padded
    assert grid.num_asr_frames(padded) * asr_hop_length == padded


@pytest.mark.parametrize(
    "fields",
    [
        {"sample_rate": 0},
        {"sample_rate": -16_000},
        {"hop_length": 0},
        {"asr_hop_length": -320},
        {"segment_samples": 0},
        {"asr_hop_length": 100},
        {"hop_length": 60},
        {"segment_samples": 16_064},
    ],
)
def test_an_impossible_geometry_is_refused_by_name_and_value(fields):
    [(name, value)] = fields.items()
    with pytest.raises(ValueError, match=f"{name} (is )?{value}"):
        FrameGeometry(**fields)


def test_a_geometry_stays_what_it_was_checked_to_be():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GRID.hop_length = 60  # pyright: ignore[reportAttributeAccessIssue]


def test_upsampling_must_reach_the_audio_rate():
    GRID.check_upsampling("loudness_factors", (4, 4, 4), GRID.hop_length)
    with pytest.raises(ValueError, match=r"asr_factors \(4, 4, 4, 4\) give 256.*320"):
        GRID.check_upsampling("asr_factors", (4, 4, 4, 4), GRID.asr_hop_length)
