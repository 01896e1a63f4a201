"""Recordings in folders and tables, their names and their splits."""

import os
import pathlib

import pytest

from data_pipeline import sources
from data_pipeline.sources import Source
from svc_jax.errors import UserError


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def touch(folder, *names: str) -> pathlib.Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def splits_of(folder, valid: float) -> dict[str, str]:
    found = sources.assign_splits(sources.find([folder]), valid)
    return {source.name: source.split for source in found}


# Folders.


def test_a_folder_is_a_singer(tmp_path):
    touch(tmp_path, "bo/1.wav", "bo/album/2.flac", "al/3.MP3", "al/.4.wav", ".x/5.wav")
    touch(tmp_path, "stray.wav", "al/words.txt", "al/6.m4a", "empty/words.txt")
    assert sources.find([tmp_path]) == [
        Source(f"{tmp_path}/al/3.MP3", "al", "al/3.MP3"),
        Source(f"{tmp_path}/al/6.m4a", "al", "al/6.m4a"),
        Source(f"{tmp_path}/bo/1.wav", "bo", "bo/1.wav"),
        Source(f"{tmp_path}/bo/album/2.flac", "bo", "bo/album/2.flac"),
    ]
    assert sources.find([f"{tmp_path}/"]) == sources.find([tmp_path])


@pytest.mark.parametrize("name", ["Łucja", "歌手", "مغنية", "a b'c\"&<d>", "🎤"])
def test_names_may_be_of_any_script(tmp_path, name):
    touch(tmp_path, f"{name}/песня №1.flac")
    (source,) = sources.find([tmp_path])
    assert (source.singer, source.name) == (name, f"{name}/песня №1.flac")


def test_a_name_that_is_no_unicode_is_found(tmp_path):
    folder = os.fsencode(tmp_path / "al")
    os.mkdir(folder)
    with open(os.path.join(folder, b"caf\xe9.wav"), "wb"):
        pass
    (source,) = sources.assign_splits(sources.find([tmp_path]), 0.5)
    assert os.path.exists(source.path)
    assert (source.name, source.split) == ("al/caf\\xe9.wav", "train")


def test_links_are_followed_but_not_for_ever(tmp_path):
    touch(tmp_path, "far/song.wav", "far/album/two.wav")
    (tmp_path / "in" / "al").mkdir(parents=True)
    (tmp_path / "in" / "bo").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "al" / "one.wav").symlink_to(tmp_path / "far" / "song.wav")
    (tmp_path / "far" / "album" / "up").symlink_to(tmp_path / "far")
    names = [source.name for source in sources.find([tmp_path / "in"])]
    assert names == ["al/one.wav", "bo/album/two.wav", "bo/song.wav"]


def test_a_broken_link_is_found_to_be_refused_later(tmp_path):
    touch(tmp_path, "al/1.wav")
    (tmp_path / "al" / "2.wav").symlink_to(tmp_path / "gone.wav")
    assert len(sources.find([tmp_path])) == 2


@pytest.mark.parametrize(
    "names", [[], ["song.wav"], ["a/words.txt"], ["a/.x.wav"], [".a/x.wav"]]
)
def test_folders_without_recordings_of_singers_are_refused(tmp_path, names):
    touch(tmp_path, *names)
    line = refusal(sources.find, [tmp_path])
    assert line.startswith(f"{tmp_path}: no folder in it holds audio (.wav .flac .ogg")
    assert f"as {tmp_path}/alto/song.wav" in line


def test_a_missing_folder_is_refused(tmp_path):
    line = refusal(sources.find, [tmp_path / "x"])
    assert line == (
        f"{tmp_path / 'x'}: no such folder of recordings, nor a table; check --input."
    )


def test_inputs_add_up_and_recordings_keep_names_of_their_own(tmp_path):
    touch(tmp_path, "x/al/1.wav", "y/al/1.wav", "y/al/2.wav", "z/al/1.wav")
    found = sources.find([tmp_path / "x", tmp_path / "y", tmp_path / "z"])
    assert {source.name: source.path for source in found} == {
        "al/1.wav": f"{tmp_path}/x/al/1.wav",
        "al/1 (2).wav": f"{tmp_path}/y/al/1.wav",
        "al/2.wav": f"{tmp_path}/y/al/2.wav",
        "al/1 (3).wav": f"{tmp_path}/z/al/1.wav",
    }
    assert {source.singer for source in found} == {"al"}


# Tables.


def table(folder, *lines: str) -> pathlib.Path:
    path = folder / "list.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_names_recordings_singers_splits_and_songs(tmp_path):
    path = table(
        tmp_path,
        "singer\tpath\tsong\tsplit\tlyrics",
        "al\ta/1.wav\tcarol\ttrain\tla la",
        'bo\t/elsewhere/2.wav\t\tvalidation\t"la',
        "bo\ta/3.wav\t\t\t",
    )
    assert sources.find([path]) == [
        Source(f"{tmp_path}/a/1.wav", "al", "al/a/1.wav", "al/carol", "train"),
        Source("/elsewhere/2.wav", "bo", "bo/elsewhere/2.wav", "", "validation"),
        Source(f"{tmp_path}/a/3.wav", "bo", "bo/a/3.wav"),
    ]


def test_a_table_may_have_a_byte_order_mark(tmp_path):
    path = tmp_path / "list.tsv"
    path.write_text("path\tsinger\n1.wav\tal\n", encoding="utf-8-sig")
    (source,) = sources.find([path])
    assert source.singer == "al"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path,singer", "a,b"], "its first line lacks the columns path and singer; "),
        (["path\tname", "a\tb"], "its first line lacks the columns singer; "),
        (["path\tsinger"], "names no recording; "),
        (["path\tsinger", "a.wav"], "path 'a.wav', singer ''; give both"),
        (["path\tsinger", "\tal"], "path '', singer 'al'; give both"),
        (["path\tsinger", "a.wav\tal/bo"], "singer 'al/bo'; give both, the singer w"),
        (["path\tsinger\tsplit", "a.wav\tal\ttest"], "split 'test'; write train or "),
    ],
)
def test_wrong_tables_are_refused(tmp_path, lines, said):
    path = table(tmp_path, *lines)
    line = refusal(sources.find, [path])
    assert line.startswith(f"{path}:")
    assert said in line


def test_missing_and_unreadable_tables_are_refused(tmp_path):
    path = tmp_path / "list.tsv"
    assert refusal(sources.find, [path]).startswith(f"{path}: no such table;")
    path.write_bytes("path\tsinger\nä\tb".encode("utf-16"))
    assert refusal(sources.find, [path]).startswith(f"{path}: is not UTF-8 text;")


# Splits.


@pytest.mark.parametrize(
    ("count", "valid", "held_out"),
    [(1, 0.5, 0), (2, 0.05, 1), (10, 0.05, 1), (40, 0.1, 4), (5, 0.0, 0), (5, 1.0, 4)],
)
def test_a_share_of_each_singers_recordings_is_held_out(
    tmp_path, count, valid, held_out
):
    touch(tmp_path, *(f"{singer}/{n}.wav" for singer in "ab" for n in range(count)))
    splits = splits_of(tmp_path, valid)
    for singer in "ab":
        own = [split for name, split in splits.items() if name.startswith(singer)]
        assert own.count("validation") == held_out
        assert own.count("train") == count - held_out


def test_splits_follow_from_the_names_and_adding_moves_few(tmp_path):
    names = [f"a/{n:02d}.wav" for n in range(60)]
    before = splits_of(touch(tmp_path / "x", *names), 0.1)
    assert splits_of(touch(tmp_path / "y", *names[::-1], "b/1.wav"), 0.1).items() > (
        before.items()
    )
    after = splits_of(touch(tmp_path / "x", *(f"a/+{n}.wav" for n in range(20))), 0.1)
    moved = [name for name in names if before[name] != after[name]]
    assert len(moved) <= 4
    # Not simply the first or the last ones.
    held_out = [n for n, name in enumerate(names) if before[name] == "validation"]
    assert max(held_out) - min(held_out) > 10


def test_recordings_of_a_song_share_its_split():
    found = [
        Source("", "al", f"al/{song}-{n}.wav", f"al/{song}")
        for song in range(10)
        for n in range(7)
    ]
    splits: dict[str, set] = {}
    for source in sources.assign_splits(found, 0.3):
        splits.setdefault(source.song, set()).add(source.split)
    assert all(len(own) == 1 for own in splits.values())
    assert sum(own == {"validation"} for own in splits.values()) == 3


def test_a_split_that_was_given_stays():
    found = [Source("", "al", f"al/{n}.wav", "", "validation") for n in range(3)]
    found += [Source("", "al", f"al/+{n}.wav") for n in range(2)]
    splits = {s.name: s.split for s in sources.assign_splits(found, 0.0)}
    assert [splits[f"al/{n}.wav"] for n in range(3)] == ["validation"] * 3
    assert [splits[f"al/+{n}.wav"] for n in range(2)] == ["train"] * 2
