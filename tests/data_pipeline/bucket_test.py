"""Preparing from a bucket into a bucket, gs://, which is a stand-in on this machine."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def bucket(tmp_path):
    """A bucket.Bucket, which is nobody else's."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl for a certificate")
    path = pathlib.Path(__file__).with_name("bucket.py")
    spec = importlib.util.spec_from_file_location("bucket", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Bucket(tmp_path) as opened:
        yield opened


def prepared(where: str, recordings, output, wav2letter_file, environment, *more):
    """Prepares `where`/recordings into `where`/output, in a process."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "data_pipeline.prepare", "--f0=yin"),
            f"--input={where}/{recordings}",
            f"--output={where}/{output}",
            f"--wav2letter={wav2letter_file}",
            *more,
        ],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.proof
def test_a_bucket_is_prepared_and_added_to_as_a_folder_is(
    bucket, recordings, tmp_path, wav2letter_file
):
    folder = tmp_path / "here"
    for singer in ("alto", "bass"):
        shutil.copytree(recordings / singer, folder / f"of_{singer}" / singer)
    for path in folder.rglob("*.wav"):
        bucket.objects[path.relative_to(folder).as_posix()] = path.read_bytes()
    for where in (str(folder), "gs://songs"):
        more = f"--cache={where}/kept"
        arguments = wav2letter_file, bucket.environment, more
        prepared(where, "of_bass", "choir", *arguments)
        said = prepared(where, "of_alto", "choir", *arguments, "--append")
        assert said.startswith(f"{where}/choir: 2 singers; ")
    for name in ("choir", "kept"):
        expected = {
            path.relative_to(folder / name).as_posix(): path.read_bytes()
            for path in (folder / name).rglob("*")
            if path.is_file() and "programs" not in path.parts
        }
        assert bucket.files(name) == expected
    tops = {name.partition("/")[0] for name in bucket.objects}
    assert tops == {"choir", "kept", "of_alto", "of_bass"}
