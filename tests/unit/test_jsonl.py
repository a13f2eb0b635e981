"""JSON lines: what is written is read back, what is torn is told."""

import errno
import json
from pathlib import Path

import pytest

from sede_kernels import jsonl


def test_values_come_back_in_order(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    values = [{"a": 1}, ["\N{GREEK SMALL LETTER BETA}", None], 0.1]
    for value in values:
        jsonl.append(path, value)
    assert list(jsonl.read(path)) == [(n, value, None) for n, value in enumerate(values, 1)]
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == values


def test_a_torn_line_stays_alone_and_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n  \n{"b": ')
    assert list(jsonl.read(path)) == [
        (1, {"a": 1}, None),
        (3, None, "not JSON (cut off: no line end)"),
    ]
    jsonl.append(path, {"c": 2})
    assert list(jsonl.read(path)) == [
        (1, {"a": 1}, None),
        (3, None, "not JSON"),
        (4, {"c": 2}, None),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_what_has_no_json_leaves_the_file_as_it_was(tmp_path, value):
    path = tmp_path / "a.jsonl"
    jsonl.append(path, 1)
    with pytest.raises(ValueError, match="JSON"):
        jsonl.append(path, {"x": value})
    assert path.read_bytes() == b"1\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full disk at hand")
def test_a_full_disk_is_an_error_of_the_system():
    with pytest.raises(OSError) as caught:
        jsonl.append(Path("/dev/full"), {"a": 1})
    assert caught.value.errno == errno.ENOSPC
