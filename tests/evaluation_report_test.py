"""The report says what was measured, and needs nothing beside itself."""

import base64
import io
import re

import numpy as np
import pytest
import soundfile

from svc_jax import evaluation_report
from svc_jax.errors import UserError
from svc_jax.geometry import FrameGeometry

GEOMETRY = FrameGeometry(16_000, 160, 320, 16_000)


def report(vde: float, **more) -> dict:
    of_all = {"vde": vde, "f0_cents": None, "pyin_ffe": 0.25}
    return {
        "model": "runs/choir",
        "summary": {"all": of_all, "a|b": of_all},
        "speed": {"real_time_factor": 0.125},
        "identification": None,
        "conversions": [{}, {}],
        **more,
    }


def sound(hz: float) -> evaluation_report.Sound:
    audio = np.float32(0.3 * np.sin(2 * np.pi * hz * np.arange(8000) / 16_000))
    return evaluation_report.Sound(audio, GEOMETRY, np.full(50, hz), np.full(50, hz))


def test_markdown_says_what_was_measured_beside_the_paper():
    about = {
        "singers": ["a", "b"],
        "num_held_out": 7,
        "held_out": {"identified": 0.9},
    }
    made = report(0.1, identification=about)
    made["summary"]["all"]["identified"] = 0.5
    text = evaluation_report.markdown(
        "choir", evaluation_report.tables({"choir": made})
    )
    lines = text.splitlines()
    assert lines[0] == "# choir"
    assert "Who sings is told among 2; real: that classifier on 7 recordings" in text
    (vde,) = [line for line in lines if line.startswith("| VDE, frames")]
    assert vde.split(" | ")[1:] == ["10.0%", "", "2.47 to 6.98 % |"]
    (told,) = [line for line in lines if line.startswith("| identified as")]
    assert told.split(" | ")[1:] == ["50.0%", "90.0%", "96.41 to 100 % |"]
    (cents,) = [line for line in lines if line.startswith("| f0 error, median")]
    assert cents.split(" | ")[1] == "none"
    assert "| real-time factor, wav to wav, features included | 0.125 |  |  |" in lines
    assert any(line.startswith("| a\\|b | 10.0% |") for line in lines)
    assert "| NUS-48E | UCD-SVC | 97.02 | 2.47 | 3.50 |" in lines


def test_two_models_stand_side_by_side():
    reports = {"one": report(0.1), "two": report(0.2)}
    (first, *others) = evaluation_report.tables(reports)
    assert first.headings[1:3] == ("one", "two")
    assert first.rows[0][1:3] == ("10.0%", "20.0%")
    titles = [table.title for table in others]
    assert titles == ["one, by singer", "two, by singer", "The paper's Table 1"]


def test_table_1_is_that_of_the_method(request):
    method = (request.config.rootpath / "svc_jax" / "method.md").read_text()
    section = method.partition("## 6.")[2].partition("## 7.")[0]
    numbers = {
        number for row in evaluation_report.TABLE_1 for number in row[2:] if number
    }
    assert numbers <= set(re.findall(r"\d+(?:\.\d+)?", section))


def test_a_page_holds_its_sounds_and_pictures():
    shown = {"song <1> by alto": {"source": sound(300), "result": sound(600)}}
    tables = evaluation_report.tables({"choir": report(0.1)})
    text = evaluation_report.page("choir", tables, shown)
    assert "song &lt;1&gt; by alto" in text
    assert "http" not in text
    files = re.findall(r'src="data:([a-z/]+);base64,([^"]*)"', text)
    assert [kind for kind, _ in files] == ["audio/flac", "audio/flac", "image/png"]
    for (_, content), hz in zip(files[:2], (300, 600), strict=True):
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
        assert rate == 16_000
        np.testing.assert_allclose(audio, sound(hz).audio, atol=2**-14)
    assert base64.b64decode(files[2][1]).startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_said_with_the_remedy(monkeypatch):
    import importlib.util

    evaluation_report.require_matplotlib()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="or say --nopage"):
        evaluation_report.require_matplotlib()
