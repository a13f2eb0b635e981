"""Rows of the compiler report are of the Triton that made them."""

import json

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
import triton

from sede_kernels.backends.triton.compile_report import report

ROW = {"digest": "d", "registers": 255}


def rows_after(folder, monkeypatch, version):
    """What a report may take over from a folder with another Triton installed."""
    monkeypatch.setattr(triton, "__version__", version)
    return report.reusable(folder)


def test_rows_are_taken_over_from_the_same_version_only(tmp_path, monkeypatch):
    assert report.reusable(tmp_path) == {}
    monkeypatch.setattr(triton, "__version__", "3.7.1")
    report.write(tmp_path, [], {"case": ROW})
    assert json.loads((tmp_path / report.JSON_NAME).read_text())["triton"] == "3.7.1"
    assert rows_after(tmp_path, monkeypatch, "3.7.1") == {"case": ROW}
    assert rows_after(tmp_path, monkeypatch, "3.8.0") == {}
    assert report.load(tmp_path) == {"case": ROW}
