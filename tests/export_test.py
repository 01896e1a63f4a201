"""The entry point that makes a folder of a run."""

from svc_jax import bundles, export


def test_a_run_is_exported(start, model_workdir, tmp_path):
    output = tmp_path / "new" / "choir"
    result = start(export, f"--workdir={model_workdir}", f"--output={output}")
    assert result == (0, f"wrote {output}\n", "")
    card = bundles.load(output).card
    assert [singer.name for singer in card.singers] == ["alto", "bass"]
    assert [p.name for p in output.parent.iterdir()] == ["choir"]


def test_what_cannot_be_exported_ends_with_one_line(start, dataset, tmp_path):
    for workdir in (tmp_path / "missing", dataset):
        output = tmp_path / "choir"
        code, out, err = start(export, f"--workdir={workdir}", f"--output={output}")
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {workdir}: no ")
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
