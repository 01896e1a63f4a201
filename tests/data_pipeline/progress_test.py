"""What the bar knows."""

import sys

from data_pipeline import progress


def test_lines_that_are_complete_count(tmp_path):
    path = tmp_path / "progress.txt"
    assert progress.read(str(path)) == []
    path.write_text("1.500\n3.000\n2.")
    assert progress.read(str(path)) == [1.5, 3.0]


def test_the_bar_shows_files_and_speed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    path = tmp_path / "progress.txt"
    with progress.bar(str(path), 3):
        path.write_text("3600.0\n3600.0\n")
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "2/3" in shown
    assert "file/s" in shown or "s/file" in shown
    assert "h of audio per hour" in shown


def test_without_a_screen_nothing_is_shown(tmp_path, capsys):
    with progress.bar(str(tmp_path / "progress.txt"), 3):
        pass
    assert capsys.readouterr().err == ""
