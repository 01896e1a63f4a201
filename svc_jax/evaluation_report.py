"""What an evaluation found, for people: Markdown, and a page with sounds and pictures."""

import base64
import dataclasses
import html
import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from svc_jax import metrics, weight_files
from svc_jax.errors import UserError
from svc_jax.geometry import FrameGeometry

MOST_SHOWN = 12  # conversions on a page

_SHARE, _CENTS, _PLAIN = "{:.1%}", "{:.0f} cents", "{:.3f}"
_F0 = {
    "vde": ("VDE, frames whose voicing is wrong", _SHARE),
    "ffe": ("FFE, or whose f0 is off by over 20 %", _SHARE),
    "gpe": ("GPE, of frames voiced in both those off by over 20 %", _SHARE),
    "f0_cents": ("f0 error, median", _CENTS),
    "f0_rmse_cents": ("f0 error, root mean square", _CENTS),
    "f0_correlation": ("f0 correlation, of cents", _PLAIN),
}
MEASURES = {  # of a summary: what it is, and how it is written
    **{
        key: (f"{said}; the model's tracker", form) for key, (said, form) in _F0.items()
    },
    **{f"pyin_{key}": (f"{said}; pYIN", form) for key, (said, form) in _F0.items()},
    "loudness_correlation": ("correlation of loudness", _PLAIN),
    "label_error": ("words: labels read unlike in the source", _SHARE),
    "spectral": ("spectral distance (L_recon)", _PLAIN),
    "mcd_db": ("mel-cepstral distortion", "{:.2f} dB"),
    "identified": ("identified as the singer", _SHARE),
    "identified_in_corpus": ("identified among their own corpus", _SHARE),
    "nearest_centroid": ("nearest to the singer's centroid", _SHARE),
    "cosine": ("cosine to the singer's centroid", _PLAIN),
}
OF_A_SINGER = {  # columns of the table of singers
    "vde": "VDE",
    "ffe": "FFE",
    "pyin_vde": "VDE, pYIN",
    "pyin_ffe": "FFE, pYIN",
    "pyin_f0_cents": "f0, pYIN",
    "label_error": "words",
    "identified": "identified",
    "cosine": "cosine",
    "spectral": "spectral",
    "mcd_db": "MCD",
}
# Table 1 of the paper (arXiv 2008.02830): identification, VDE and FFE in %.
TABLE_1 = (
    ("LJ", "Mellotron", "76.47", "8.35", "9.50"),
    ("LJ", "UCD-SVC", "97.87", "4.19", "5.51"),
    ("LJ", "ground truth", "97.91", "", ""),
    ("VCTK", "Mellotron", "57.67", "15.02", "16.62"),
    ("VCTK", "UCD-SVC", "96.41", "6.98", "7.72"),
    ("VCTK", "ground truth", "99.28", "", ""),
    ("LCSING", "USVC", "8.51", "8.19", "11.46"),
    ("LCSING", "UCD-SVC", "100", "4.00", "4.80"),
    ("LCSING", "ground truth", "100", "", ""),
    ("NUS-48E", "Mellotron", "60.11", "6.59", "8.02"),
    ("NUS-48E", "WGANSing", "92.27", "3.85", "5.06"),
    ("NUS-48E", "USVC", "93.45", "4.82", "20.80"),
    ("NUS-48E", "UCD-SVC", "97.02", "2.47", "3.50"),
)
_PAPER = {  # the range of UCD-SVC over the targets of Table 1
    "identified": "96.41 to 100 %",
    "vde": "2.47 to 6.98 %",
    "ffe": "3.50 to 7.72 %",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells under headings."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Sound:
    """A recording to be shown.

    Attributes:
      audio: float32 [N].
      geometry: its rate and the grid of its f0.
      heard_hz: [T] f0 that is heard in it.
      asked_hz: [T] f0 that it was sung from; None for a source.
    """

    audio: np.ndarray
    geometry: FrameGeometry
    heard_hz: np.ndarray
    asked_hz: np.ndarray | None = None


def tables(reports: Mapping[str, dict]) -> list[Table]:
    """All that reports of svc_jax.evaluate say, side by side.

    Args:
      reports: by the names of their models.
    """
    found = [_measures(reports)]
    for name, report in reports.items():
        singers = {k: v for k, v in report["summary"].items() if k != "all"}
        keys = [k for k in OF_A_SINGER if k in report["summary"]["all"]]
        rows = [(s, *(cell(k, own[k]) for k in keys)) for s, own in singers.items()]
        headings = ("singer", *(OF_A_SINGER[key] for key in keys))
        found.append(Table(f"{name}, by singer", headings, rows))
    table_1 = Table(
        "The paper's Table 1",
        ("target", "method", "identification, %", "VDE, %", "FFE, %"),
        TABLE_1,
        "Other singers, sources, networks and days of training: where this model is"
        " going, not what it was measured beside. MOS and similarity need listeners.",
    )
    return [*found, table_1]


def _measures(reports) -> Table:
    """Every measure of all conversions, the paper's and that of real recordings beside."""
    about = next(iter(reports.values()))["identification"]
    held_out = about["held_out"] if about else {}
    summaries = [report["summary"]["all"] for report in reports.values()]
    rows = []
    for key, (said, _) in MEASURES.items():
        if any(key in summary for summary in summaries):
            values = (cell(key, summary.get(key)) for summary in summaries)
            real = cell(key, held_out[key]) if key in held_out else ""
            rows.append((said, *values, real, _PAPER.get(key, "")))
    factors = [report["speed"]["real_time_factor"] for report in reports.values()]
    said = "real-time factor, wav to wav, features included"
    rows.append((said, *(f"{factor:.3f}" for factor in factors), "", ""))
    headings = ("", *reports, "real, held out", "UCD-SVC in the paper")
    count = len(next(iter(reports.values()))["conversions"])
    note = f"Means over {count} conversions. f0 is compared with the source's, shifted."
    if about:
        note += (
            f" Who sings is told among {len(about['singers'])}; real: that classifier on"
            f" {about['num_held_out']} recordings that it was not fitted to."
        )
    return Table("All conversions", headings, rows, note)


def cell(key: str, value: float | None) -> str:
    """A measure as it is written."""
    return "none" if value is None else MEASURES[key][1].format(value)


def markdown(title: str, found: Iterable[Table]) -> str:
    """Tables as a Markdown document."""
    parts = [f"# {title}\n"]
    for table in found:
        lines = [table.headings, ["---"] * len(table.headings), *table.rows]
        text = "\n".join(f"| {' | '.join(map(_bar_free, row))} |" for row in lines)
        parts.append(f"## {table.title}\n\n{text}\n")
        if table.note:
            parts.append(f"{table.note}\n")
    return "\n".join(parts)


def _bar_free(text: str) -> str:
    return text.replace("|", "\\|")


# The page.

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em;
       padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse }
th, td { text-align: left; padding: .2em .6em; border-bottom: 1px solid #ddd }
td + td { text-align: right; font-variant-numeric: tabular-nums }
figure { display: inline-block; margin: 0 1em 1em 0 } img { max-width: 100% }
audio { width: 20em }
"""


def page(
    title: str,
    found: Iterable[Table],
    shown: Mapping[str, Mapping[str, Sound]],
) -> str:
    """A page of HTML that needs nothing beside itself.

    Args:
      title: of the page.
      found: tables.
      shown: of each conversion, by its name, its sounds by theirs.
    """
    parts = []
    for table in found:
        head = "".join(f"<th>{html.escape(text)}</th>" for text in table.headings)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in table.rows
        )
        parts.append(
            f"<h2>{html.escape(table.title)}</h2>\n<p>{html.escape(table.note)}</p>\n"
            f"<table><tr>{head}</tr>\n{rows}</table>\n"
        )
    parts.append(
        "<h2>Conversions</h2>\n<p>f0: the line as the model's tracker hears it, dotted as"
        " it was asked for.</p>\n"
    )
    for name, sounds in shown.items():
        players = "".join(
            f"<figure><figcaption>{html.escape(kind)}</figcaption><audio controls"
            f' src="{_data("audio/flac", flac(sound))}"></audio>'
            "</figure>"
            for kind, sound in sounds.items()
        )
        image = _data("image/png", picture(sounds))
        parts.append(
            f"<h3>{html.escape(name)}</h3>\n{players}\n"
            f'<p><img alt="spectrograms" src="{image}"></p>\n'
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n{''.join(parts)}</body></html>\n"
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def flac(sound: Sound) -> bytes:
    """A FLAC file of 16 bits; what is louder than 1 is clipped."""
    import soundfile

    audio, sample_rate = np.clip(sound.audio, -1, 1), sound.geometry.sample_rate
    file = io.BytesIO()
    soundfile.write(file, audio, sample_rate, "PCM_16", format="FLAC")
    return file.getvalue()


def require_matplotlib():
    """Raises UserError unless the pictures of a page can be drawn."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "a page of spectrograms needs matplotlib; pip install 'svc_jax[eval]', or"
            " say --nopage."
        )


def picture(sounds: Mapping[str, Sound]) -> bytes:
    """Spectrograms of sounds side by side, their f0 below them, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(sounds), 4), layout="constrained")
    axes = figure.subplots(
        2,
        len(sounds),
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=(2, 1),
    )
    for (above, below), (name, sound) in zip(axes.T, sounds.items(), strict=True):
        sample_rate = sound.geometry.sample_rate
        above.imshow(
            metrics.spectrogram_db(sound.audio),
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=-60,
            vmax=30,
            extent=(0, sound.audio.size / sample_rate, 0, sample_rate / 2000),
        )
        above.set_title(name, loc="left", fontsize=9)
        for f0_hz, style in ((sound.heard_hz, "C0-"), (sound.asked_hz, "k:")):
            if f0_hz is not None:
                seconds = np.arange(len(f0_hz)) / sound.geometry.frame_rate
                below.plot(seconds, np.where(f0_hz > 0, f0_hz, np.nan), style)
        below.set_xlabel("seconds")
    axes[0, 0].set_ylabel("kHz")
    axes[1, 0].set_ylabel("f0, Hz")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()


def write(
    folder,
    name: str,
    title: str,
    reports: Mapping[str, dict],
    shown: Mapping[str, Mapping[str, Sound]],
    *,
    with_page: bool,
):
    """Writes FOLDER/NAME.md and, if wished, NAME.html.

    Args:
      folder: of the documents.
      name: of them, without its ending.
      title: of them.
      reports: see `tables`.
      shown: see `page`.
      with_page: whether to write the page.

    Raises:
      UserError: if the folder cannot be written to.
    """
    found = tables(reports)
    texts = {".md": markdown(title, found)}
    if with_page:
        texts[".html"] = page(title, found, shown)
    for ending, text in texts.items():
        weight_files.write_bytes(pathlib.Path(folder, name + ending), text.encode())
