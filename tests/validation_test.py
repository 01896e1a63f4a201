"""What is told of a generator between checkpoints."""

import jax.numpy as jnp
import numpy as np
import pytest

from svc_jax import validation

ASKED = np.float32([[100, 200, 0, 0], [100, 100, 100, 100]])


def evaluated(batch):
    """The reconstruction is perfect; the conversion slips in one frame of each row."""
    slipped = ASKED.copy()
    slipped[0, 0] = 0.0  # voicing
    slipped[1, 1] = 200.0  # an octave
    terms = {"spectral": jnp.float32(batch["loss"]), "total": jnp.float32(1.0)}
    sung = {"conversion": np.full((2, 8), batch["loss"])}
    return terms, sung, {"asked": ASKED, "reconstruction": ASKED, "conversion": slipped}


def test_losses_and_errors_of_f0_are_of_all_batches():
    values, sung = validation.measure(evaluated, [{"loss": 1.0}, {"loss": 4.0}])
    assert values == pytest.approx(
        {
            "validation/spectral": 2.5,
            "validation/total": 1.0,
            "validation/reconstruction/vde": 0.0,
            "validation/reconstruction/ffe": 0.0,
            "validation/conversion/vde": 1 / 8,
            "validation/conversion/ffe": 2 / 8,
        }
    )
    np.testing.assert_array_equal(sung["conversion"], np.ones((2, 8)))


def test_examples_are_of_different_singers():
    audio = np.arange(6)[:, None]
    batch = {"singer_id": np.array([2, 2, 0, 1, 0, 3]), "audio": audio}
    sung = {"reconstruction": audio + 10, "conversion": audio + 20}
    found = dict(validation.examples(["alto", "bass", "cat", "dog"], batch, sung))
    assert {name: int(audio[0]) for name, audio in found.items()} == {
        "source/alto": 2,
        "reconstruction/alto": 12,
        "conversion/alto_to_bass": 22,
        "source/bass": 3,
        "reconstruction/bass": 13,
        "conversion/bass_to_cat": 23,
        "source/cat": 0,
        "reconstruction/cat": 10,
        "conversion/cat_to_dog": 20,
    }
