"""What every test shares: eight CPU devices, strict JAX, a compilation cache, test data."""

import os
import pathlib
import sys

import pytest


def _compilation_cache() -> str:
    """Returns the folder, outside the checkout, that keeps compiled programs."""
    named = os.environ.get("SVC_JAX_TEST_CACHE")
    if named:
        return named
    if sys.platform == "darwin":
        base = pathlib.Path.home() / "Library" / "Caches"
    else:
        base = pathlib.Path(
            os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        )
    return str(base / "svc_jax" / "test_compilation")


# In the environment, before JAX is imported, so that the programs which the tests start
# have them too. The suite is for the CPU; JAX_PLATFORMS=cuda tries it elsewhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compilation_cache())
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax

# Only in this process: a mesh to test on, and no silent broadcast over a forgotten axis.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The folder of real recordings, weights and reference arrays, or a skip."""
    named = os.environ.get("SVC_JAX_TEST_DATA")
    if not named:
        pytest.skip("needs recordings and weights: SVC_JAX_TEST_DATA names no folder")
    folder = pathlib.Path(named).resolve()
    if not folder.is_dir():
        pytest.fail(f"SVC_JAX_TEST_DATA={named} is not a folder")
    return folder
