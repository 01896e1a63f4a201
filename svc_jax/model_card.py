"""What stands in a model's README.md: whose voices they are, and who may use them."""

import dataclasses
import json
import pathlib

from svc_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Statement:
    """What only people know of a model; empty where nobody said.

    Attributes:
      licence: of the model.
      consent: how the singers agreed to be converted into.
      data: what recordings it was trained on.
    """

    licence: str = ""
    consent: str = ""
    data: str = ""


MISSING = {
    "licence": "no licence is stated: nobody but its maker may use this model",
    "consent": "no consent is stated: do not convert into these voices",
    "data": "the recordings it was trained on are not stated",
}


def missing(statement: Statement) -> list[str]:
    """What to say of each thing that nobody said."""
    return [said for name, said in MISSING.items() if not getattr(statement, name)]


def define_flags():
    """Flags of the command line that make a Statement."""
    from absl import flags

    flags.DEFINE_string("license", "", "Of the model, for its card.")
    flags.DEFINE_string("consent", "", "How the singers agreed, for the card.")
    flags.DEFINE_string("data", "", "What it was trained on, for the card.")


def stated(flags) -> Statement:
    """The Statement of `define_flags`."""
    return Statement(flags.license, flags.consent, flags.data)


def read(folder) -> Statement:
    """What the card of a model says; empty where it says nothing, or there is none."""
    path = pathlib.Path(folder, "README.md")
    rows = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    cells = [row.strip("| ").split(" | ") for row in rows]
    said = {row[0]: row[1] for row in cells if len(row) == 2}
    found = (said.get(heading, "") for heading in _HEADINGS)
    return Statement(*("" if text == _NOT_STATED else text for text in found))


def joined(known: Statement, new: Statement, name: str) -> Statement:
    """What is known of a model that was given one more voice.

    A licence is the newest; consent and data are stated where they are for all voices.

    Args:
      known: of the model before.
      new: of the voice.
      name: of the voice.
    """

    def both(before: str, added: str) -> str:
        return f"{before}; {name}: {added}" if before and added else ""

    return Statement(
        new.licence or known.licence,
        both(known.consent, new.consent),
        both(known.data, new.data),
    )


def read_report(path) -> dict[str, float | None]:
    """Means over all conversions of a report of svc_jax.evaluate.

    Raises:
      UserError: if it is none.
    """
    try:
        return dict(json.loads(pathlib.Path(path).read_text())["summary"]["all"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no report of svc_jax.evaluate ({error}); name its report.json."
        ) from error


def text(model, name: str, statement: Statement, metrics: dict, files: dict) -> str:
    """The card.

    Args:
      model: bundles.Model.
      name: of the model.
      statement: what people say of it.
      metrics: names and values.
      files: of the frozen networks that the model comes without, how to get them.
    """
    card = model.card
    warnings = [f"**Warning: {said}.**\n" for said in missing(statement)]
    facts = {
        **{
            heading: text or _NOT_STATED
            for heading, text in zip(
                _HEADINGS, dataclasses.astuple(statement), strict=True
            )
        },
        "recordings": f"{sum(s.minutes for s in card.singers):.1f} minutes",
        "generator": model.config.generator.name,
        "pitch by": f"{card.f0['network']}, sha256 {card.f0['sha256']}",
        "content by": f"{card.asr['network']}, sha256 {card.asr['sha256']}",
    }
    singers = [
        (s.name, f"{s.minutes:.1f}", *(f"{hz:.0f}" for hz in _pitches(s)))
        for s in card.singers
    ]
    measured = [
        (name, "none" if value is None else f"{value:.4g}")
        for name, value in metrics.items()
    ]
    return _TEXT.format(
        name=name,
        warnings="\n".join([*warnings, ""]),
        num_singers=len(card.singers),
        sample_rate=card.sample_rate,
        singer=card.singers[0].name,
        facts=_rows(facts.items()),
        singers=_rows(singers),
        metrics=_rows(measured) or "| none yet | |",
        files="\n".join(f"- `{file}`: {how}" for file, how in files.items()) or "None.",
    )


def _pitches(singer) -> tuple[float, float, float]:
    return singer.mean_f0_hz, singer.low_f0_hz, singer.high_f0_hz


def _rows(cells) -> str:
    """Lines of a table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


_HEADINGS = ("licence", "consent of the singers", "data")  # of a Statement's fields
_NOT_STATED = "not stated"

_TEXT = """\
# {name}

{warnings}A singing voice conversion model of svc_jax: {num_singers} voices at {sample_rate} Hz. It takes
singing of one isolated voice.

```sh
python -m svc_jax.convert --model {name} --singer "{singer}" --output out/ song.wav
```

| | |
|---|---|
{facts}

## Voices

| singer | minutes | mean f0, Hz | lowest | highest |
|---|---|---|---|---|
{singers}

## Metrics

| | |
|---|---|
{metrics}

## Files it comes without

{files}

Convert a voice only with the consent of the person it belongs to, and say that a
conversion is one.
"""
