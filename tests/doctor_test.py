"""What to paste into a bug report."""

import importlib.metadata
import shutil

import jax
import pytest

from svc_jax import bundles, doctor, published, weights


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """A cache without anything, and published weights of which none can be found."""
    monkeypatch.setenv("SVC_JAX_CACHE", str(tmp_path / "cache"))
    found = published.PublishedFile(
        "wav2letter.safetensors", "0" * 64, url="https://x/"
    )
    monkeypatch.setattr(published, "PUBLISHED", {"wav2letter": (found,)})
    return tmp_path / "cache"


def lines_of(out: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in out.splitlines())
    return {name.strip(): value.strip() for name, value in pairs}


def test_a_machine_is_described(start, empty_cache):
    code, out, err = start(doctor)
    assert (code, err) == (0, "")
    lines = lines_of(out)
    for package in ("jax", "flax", "numpy", "soundfile"):
        assert lines[package] == importlib.metadata.version(package)
    assert lines["devices"].startswith(f"{jax.default_backend()}: ")
    assert lines["wav2letter"] == (
        f"missing; put https://x/ at {empty_cache / 'wav2letter.safetensors'}"
    )
    assert lines["cache"] == f"{empty_cache}, none"
    assert lines["room here"].endswith("GiB free")
    assert not empty_cache.exists()


def test_weights_are_said_to_be_where_they_are(
    start, empty_cache, wav2letter_file, monkeypatch
):
    sha256 = weights.wav2letter(wav2letter_file).sha256
    found = published.PublishedFile("wav2letter.safetensors", sha256)
    monkeypatch.setitem(published.PUBLISHED, "wav2letter", (found,))
    empty_cache.mkdir()
    place = shutil.copy(wav2letter_file, empty_cache / found.name)
    lines = lines_of(start(doctor)[1])
    assert lines["wav2letter"] == str(place)
    assert lines["cache"].endswith(", 0 MiB")


def test_without_devices_it_still_speaks(start, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize\nbackend")

    monkeypatch.setattr(jax, "devices", fail)
    code, out, _ = start(doctor)
    assert code == 0
    assert lines_of(out)["devices"] == "none: Unable to initialize backend"


def test_a_model_is_looked_at(start, model_workdir, tmp_path):
    folder = tmp_path / "model"
    bundles.save(bundles.load(model_workdir), model_workdir, folder)
    lines = lines_of(start(doctor, f"--model={folder}")[1])
    assert lines["whole"] == str(folder)
    assert lines["generator"] == "wavenet"
    assert lines["singers"] == "2"
    (folder / "params.safetensors").unlink()
    code, out, _ = start(doctor, f"--model={folder}")
    assert code == 0
    assert "params.safetensors: is missing" in lines_of(out)["damaged"]
