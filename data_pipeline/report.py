"""What the doctor found: a table for programs, a page for people, lines for the screen."""

import csv
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from data_pipeline import schema
from data_pipeline.decisions import Decision
from data_pipeline.feature_cache import replacing
from data_pipeline.verdicts import REFUSED, USED, WARNED

TABLE, PAGE = "report.tsv", "report.html"
COLUMNS = (
    "recording",
    "singer",
    "split",
    "verdict",
    "reasons",
    "seconds",
    "kept_seconds",
    "sample_rate",
    "channels",
    "format",
    "peak",
    "clipped",
    "dc_offset",
    "level_db",
    "snr_db",
    "voiced",
    "confidence",
    "harmonicity",
    "f0_hz",
    "sha256",
)
MOST_LISTED = 100  # recordings with a reason, on the page


def rows(decisions: Iterable[Decision], asr_frame_rate: float) -> list[dict[str, str]]:
    """A row of COLUMNS for each recording."""
    return [_row(decision, asr_frame_rate) for decision in decisions]


def _row(decision: Decision, asr_frame_rate: float) -> dict[str, str]:
    heard, verdict = decision.heard, decision.verdict
    source, measures, sound = heard.source, heard.measures, heard.sound
    kept = sum(last - first for first, last in heard.spans) * decision.is_used
    return {
        "recording": _one_line(source.name),
        "singer": _one_line(source.singer),
        "split": source.split or "",
        "verdict": verdict.outcome,
        "reasons": _one_line("; ".join(verdict.reasons)),
        "seconds": f"{measures.seconds:.3f}",
        "kept_seconds": f"{kept / asr_frame_rate:.2f}",
        "sample_rate": str(measures.sample_rate),
        "channels": str(measures.channels),
        "format": measures.subtype,
        "peak": f"{measures.peak:.4f}",
        "clipped": f"{measures.clipped:.6f}",
        "dc_offset": f"{measures.dc_offset:.5f}",
        "level_db": f"{sound.level_db:.1f}",
        "snr_db": f"{sound.snr_db:.1f}",
        "voiced": f"{sound.voiced:.3f}",
        "confidence": f"{sound.confidence:.3f}",
        "harmonicity": f"{sound.harmonicity:.3f}",
        "f0_hz": f"{sound.f0_hz:.1f}",
        "sha256": measures.sha256,
    }


def _one_line(text: str) -> str:
    """Without the tabs and line breaks that would break a table."""
    return " ".join(text.split())


def write_table(folder, table: Sequence[dict[str, str]]):
    """Writes report.tsv."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text,
        COLUMNS,
        delimiter="\t",
        lineterminator="\n",
        quoting=csv.QUOTE_NONE,
        quotechar=None,
    )
    writer.writeheader()
    writer.writerows(table)
    with replacing(epath.Path(folder) / TABLE) as partial:
        partial.write_text(text.getvalue())


def read_table(folder) -> list[dict[str, str]]:
    """The rows of report.tsv; none where a dataset has no report."""
    path = epath.Path(folder) / TABLE
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def counts(table: Sequence[dict[str, str]]) -> dict[str, int]:
    """How many recordings have each verdict."""
    outcomes = [row["verdict"] for row in table]
    return {outcome: outcomes.count(outcome) for outcome in (USED, WARNED, REFUSED)}


def summary(table: Sequence[dict[str, str]]) -> str:
    """One line: how many are used, warned of and refused, and why."""
    found = counts(table)
    line = (
        f"{found[USED]} recordings used, {found[WARNED]} used with a warning,"
        f" {found[REFUSED]} refused"
    )
    kinds: dict[str, int] = {}
    for row in table:
        for reason in filter(None, row["reasons"].split("; ")):
            kind = reason.partition(":")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
    most = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return line + "".join(f", {count} {kind}" for kind, count in most)


# The page.

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em;
       padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .2em .6em; border-bottom: 1px solid #ddd }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.warned { color: #a60 } .refused { color: #b00 }
svg rect { fill: #47a }
"""


def write_page(folder, name: str, card: schema.Card, table: Sequence[dict[str, str]]):
    """Writes report.html of the dataset `name`; it needs nothing beside itself."""
    title = f"Dataset {html.escape(name)}"
    singers = "".join(
        _singer_row(number, singer, table, folder)
        for number, singer in enumerate(card.singers)
    )
    listed = sorted(
        (row for row in table if row["reasons"]),
        key=lambda row: (row["verdict"] != REFUSED, -row["reasons"].count(";")),
    )
    more = len(listed) - MOST_LISTED
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<p>{html.escape(summary(table))}.</p>
<h2>Singers</h2>
<table><tr><th>singer</th><th>minutes</th><th>mean f0</th><th>f0 of the records</th>
<th>level of each recording, dB</th><th>SNR, dB</th></tr>
{singers}</table>
<h2>Recordings to look at</h2>
<table><tr><th>recording</th><th>verdict</th><th>why</th></tr>
{"".join(map(_reason_row, listed[:MOST_LISTED]))}</table>
{f"<p>And {more} more, in {TABLE}.</p>" if more > 0 else ""}
</body></html>
"""
    with replacing(epath.Path(folder) / PAGE) as partial:
        partial.write_text(page)


def _singer_row(number: int, singer: schema.Singer, table, folder) -> str:
    own = [r for r in table if r["singer"] == singer.name and r["verdict"] != REFUSED]
    levels = [float(row["level_db"]) for row in own]
    noise = [float(row["snr_db"]) for row in own]
    f0_hz, frames = _record_f0(folder, number)
    octaves = np.arange(np.log2(55), np.log2(1760) + 0.01, 1 / 6)
    pitch, _ = np.histogram(np.log2(np.maximum(f0_hz, 1)), octaves, weights=frames)
    level, _ = np.histogram(levels, np.arange(-60, 1, 3))
    middle = f"{np.median(noise):.0f}" if noise else ""
    return (
        f"<tr><td>{html.escape(singer.name)}</td>"
        f'<td class="number">{singer.minutes:.1f}</td>'
        f'<td class="number">{singer.mean_f0_hz:.0f} Hz</td>'
        f"<td>{_bars(pitch, '55 Hz', '1760')}</td>"
        f"<td>{_bars(level, '-60', '0')}</td>"
        f'<td class="number">{middle}</td></tr>\n'
    )


def _record_f0(folder, singer_id: int):
    """(mean f0, frames) of a singer's voiced records, from the index."""
    f0_hz, frames = [], []
    for path in sorted((epath.Path(folder) / schema.INDEX).glob("*.npz")):
        with path.open("rb") as file, np.load(file) as arrays:
            own = (arrays["singer_id"] == singer_id) & (arrays["f0_hz"] > 0)
            f0_hz.append(arrays["f0_hz"][own])
            frames.append(arrays["asr_frames"][own])
    return np.concatenate([*f0_hz, []]), np.concatenate([*frames, []])


def _bars(heights: np.ndarray, left: str, right: str) -> str:
    """A histogram as a small picture."""
    top = max(1e-9, float(heights.max(initial=0)))
    rects = "".join(
        f'<rect x="{6 * n}" y="{40 - 40 * h / top:.1f}" width="5"'
        f' height="{40 * h / top:.1f}"/>'
        for n, h in enumerate(heights.tolist())
    )
    width = 6 * len(heights)
    text = 'font-size="10" y="52"'
    return (
        f'<svg width="{width}" height="54" viewBox="0 0 {width} 54">{rects}'
        f'<text x="0" {text}>{left}</text>'
        f'<text x="{width}" text-anchor="end" {text}>{right}</text></svg>'
    )


def _reason_row(row: dict[str, str]) -> str:
    verdict = row["verdict"]
    return (
        f'<tr><td>{html.escape(row["recording"])}</td><td class="{verdict}">'
        f"{verdict}</td><td>{html.escape(row['reasons'])}</td></tr>\n"
    )
