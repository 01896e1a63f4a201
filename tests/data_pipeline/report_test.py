"""The doctor's report: names of any script, and none that breaks a table or a page."""

import html

import numpy as np
import pytest

from data_pipeline import extraction, report, schema, shards, verdicts
from data_pipeline.decisions import Decision
from data_pipeline.sources import Source


def decision(name: str, outcome: str = "used", *reasons: str) -> Decision:
    singer = name.partition("/")[0]
    heard = extraction.Heard(
        Source(name, singer, name, split="train"),
        "key",
        extraction.Measures(sample_rate=44_100, channels=2, subtype="PCM_16"),
        verdicts.Sound(level_db=-20.0, noise_db=-60.0),
        0,
        ((0, 100), (150, 200)),
    )
    return Decision(heard, verdicts.Verdict(outcome, reasons))


NAMES = ["łódź/żółw.wav", "歌手/a b.wav", "<b>/&amp;\"'.wav", "a/tab\there\nline.wav"]


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = report.rows([decision(name) for name in NAMES], 50.0)
    report.write_table(tmp_path, table)
    assert report.read_table(tmp_path) == table
    lines = (tmp_path / "report.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(NAMES)
    assert {line.count("\t") for line in lines} == {len(report.COLUMNS) - 1}
    assert table[0]["recording"] == "łódź/żółw.wav"
    assert table[3]["recording"] == "a/tab here line.wav"


def test_kept_seconds_are_those_of_the_records():
    used, refused = report.rows(
        [decision("a/1"), decision("a/2", "refused", "x")], 50.0
    )
    assert (used["kept_seconds"], refused["kept_seconds"]) == ("3.00", "0.00")


def test_a_dataset_without_a_report_has_no_rows(tmp_path):
    assert report.read_table(tmp_path) == []


def test_the_summary_counts_verdicts_and_kinds_of_reasons():
    table = report.rows(
        [
            decision("a/1"),
            decision("a/2", "warned", "short: 0.3 s", "clipped: 3 %"),
            decision("a/3", "warned", "clipped: 1 %"),
            decision("a/4", "refused", "silent: every sample is zero"),
        ],
        50.0,
    )
    assert report.summary(table) == (
        "1 recordings used, 2 used with a warning, 1 refused, 2 clipped, 1 short,"
        " 1 silent"
    )


def test_the_page_shows_names_as_text_and_the_worst_first(tmp_path):
    table = report.rows(
        [
            decision("<b>/ok.wav"),
            decision("<b>/so so.wav", "warned", "short: 0.3 s"),
            decision("<b>/<i>bad</i>.wav", "refused", "silent: <u>"),
        ],
        50.0,
    )
    columns = {"asr_frames": [5, 9], "singer_id": [0, 0], "f0_hz": [220.0, 0.0]}
    shards.write_index(tmp_path, "train", 0, columns)
    card = schema.Card(
        (schema.Singer("<b>", 220.0, 200.0, 240.0, 1.5),), 16_000, 64, 320, {}, {}
    )
    report.write_page(tmp_path, "<choir>", card, table)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<u>" not in page
    bad, so_so = html.escape("<b>/<i>bad</i>.wav"), html.escape("<b>/so so.wav")
    assert page.index(bad) < page.index(so_so)
    assert html.escape("<b>/ok.wav") not in page
    assert "<h1>Dataset &lt;choir&gt;</h1>" in page


@pytest.mark.parametrize("heights", [[], [0, 0], [1, 0, 4]])
def test_bars_are_as_high_as_their_values(heights):
    picture = report._bars(np.asarray(heights, float), "0", "9")
    found = [float(part.split('"')[0]) for part in picture.split('height="')[2:]]
    top = max([*heights, 1e-9])
    assert found == [pytest.approx(40 * h / top, abs=0.05) for h in heights]
