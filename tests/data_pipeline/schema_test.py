"""The dataset's description of itself."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline import schema
from svc_jax.errors import UserError

hz = st.floats(1, 5000)
singers = st.builds(schema.Singer, st.text(min_size=1), hz, hz, hz, st.floats(0, 1e4))
cards = st.builds(
    schema.Card,
    singers=st.lists(singers, max_size=4).map(tuple),
    sample_rate=st.integers(1),
    hop_length=st.integers(1),
    asr_hop_length=st.integers(1),
    f0=st.just({"network": "yin", "sha256": None, "hop_length": 160}),
    asr=st.fixed_dictionaries({"layer": st.just("wide"), "size": st.integers(1)}),
)


def card_of(*names: str) -> schema.Card:
    known = tuple(schema.Singer(name, 200.0, 100.0, 400.0, 1.5) for name in names)
    return schema.Card(known, 16_000, 64, 320, {"network": "yin"}, {"size": 12})


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cards)
def test_a_card_is_read_as_it_was_written(tmp_path, card):
    card.write(tmp_path)
    assert schema.Card.read(tmp_path) == card


def test_a_card_is_json_that_people_can_read(tmp_path):
    card_of("Jörg").write(tmp_path)
    text = (tmp_path / "singers.json").read_text(encoding="utf-8")
    assert '"name": "Jörg"' in text
    assert json.loads(text)["version"] == schema.VERSION
    assert len(text.splitlines()) > 10


def test_a_folder_without_a_card_is_neither_dataset_nor_model(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        line = refusal(schema.Card.read, folder)
        assert line.startswith(f"{folder}: no singers.json")
        assert "data_pipeline.prepare" in line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": "new"}',
        '{"version": "1.0.0"}',
        '{"version": "1.0.0", "singers": [{"name": "alto"}]}',
        '{"version": "1.0.0", "singers": [], "sample_rate": 16000}',
        '{"version": "1.0.0", "singers": [], "colour": "blue"}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_card_is_refused(tmp_path, text):
    path = tmp_path / "singers.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refusal(schema.Card.read, tmp_path).startswith(f"{path}: damaged (")


def test_a_card_of_a_newer_contract_is_refused(tmp_path):
    newer = f"{int(schema.VERSION.split('.')[0]) + 1}.0.0"
    dataclasses.replace(card_of("alto"), version=newer).write(tmp_path)
    line = refusal(schema.Card.read, tmp_path)
    assert f"version {newer} is newer than {schema.VERSION}; update" in line


def test_records_of_an_older_contract_are_refused(tmp_path):
    dataclasses.replace(card_of("alto"), version="1.0.0").write(tmp_path)
    assert schema.Card.read(tmp_path).version == "1.0.0"  # as of a model
    line = refusal(schema.Card.of_dataset, tmp_path)
    assert "version 1.0.0" in line
    assert line.endswith("prepare the recordings again.")


def test_singers_are_numbered_in_the_order_of_the_card():
    card = card_of("treble", "alto", "bass")
    assert [card.singer_id(n) for n in ("treble", "alto", "bass")] == [0, 1, 2]


@pytest.mark.parametrize("name", ["tenor", "", "Alto", "alto "])
def test_unknown_singers_are_refused_with_the_known_ones(name):
    line = refusal(card_of("treble", "alto").singer_id, name)
    assert line == f"singer {name!r} is unknown; the model knows treble, alto."


def test_every_version_has_its_release_note():
    assert schema.VERSION in schema.RELEASE_NOTES
