"""The committed record of the host's time of calls whose launches do nothing."""

import json

from tests.ptx.kernels.record import FOLDER


def test_the_hosts_time_of_every_call_is_below_tritons() -> None:
    record = json.loads((FOLDER / "host-time.json").read_text(encoding="utf-8"))
    assert record["threads"] == 1 and len(record["microseconds"]) >= 7
    for call, times in record["microseconds"].items():
        assert 0 < times["cuda"] < times["triton"], call
