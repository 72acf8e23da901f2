"""Files that are whole or as they were, whatever happens while they are written."""

import pytest

from kerakd.errors import BadInput
from kerakd.files import is_aside, read_json, write_aside, write_json, write_together


def broken(aside):
    aside.write_text("half")
    raise OSError("the disk is full")


def test_what_fails_to_be_written_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"before": 1})
    with pytest.raises(OSError, match="full"):
        write_aside(path, broken)
    assert read_json(path) == {"before": 1} and list(tmp_path.iterdir()) == [path]


def test_of_several_files_none_is_new_where_one_fails(tmp_path):
    first, second = tmp_path / "a.tflite", tmp_path / "b.json"
    first.write_text("before")
    with pytest.raises(OSError, match="full"):
        write_together({first: lambda aside: aside.write_text("new"), second: broken})
    assert first.read_text() == "before" and list(tmp_path.iterdir()) == [first]


def test_the_last_of_several_files_is_there_only_when_all_are(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("kerakd.files.os.replace", lambda aside, path: seen.append((path.name, sorted(one.name for one in tmp_path.iterdir()))))
    write_together({tmp_path / name: lambda aside: aside.write_text("x") for name in ("b", "a")})
    both = [".a.partial", ".b.partial"]
    assert seen == [("b", both), ("a", both)]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "a", []
    monkeypatch.setattr("kerakd.files.os.fsync", lambda number: seen.append(path.exists()))
    write_aside(path, lambda aside: aside.write_text("x"))
    assert seen == [False] and path.exists()


def test_a_killed_writers_file_is_known_by_its_name(tmp_path):
    names = []
    write_aside(tmp_path / "x.keras", lambda aside: names.append(aside) or aside.write_text("x"))
    names[0].write_text("half")
    assert is_aside(names[0]) and not is_aside(tmp_path / "x.keras")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(BadInput, match="a.json: expected JSON as it was written, received something damaged"):
        read_json(tmp_path / "a.json")
