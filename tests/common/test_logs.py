"""The daemons' logs are JSON objects, one a line, whoever writes and whatever is in them."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import logging
from common.logs import log, to_stderr
to_stderr()
own = log("consilium.tests")
own.info("listening", port=9092, site="a\\nb")
try:
    raise ValueError("an\\nerror")
except ValueError:
    own.exception("failed")
logging.getLogger("library").warning("from %s", "elsewhere")
own.debug("too much")
for noisy in ("httpx", "httpcore", "uvicorn.error", "flwr"):
    logging.getLogger(noisy).info("a request")
    logging.getLogger(noisy).warning("trouble")
"""


def test_each_line_is_an_object_with_its_event_level_and_time() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["listening", "failed", "from elsewhere", *["trouble"] * 3]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
    assert (lines[0]["port"], lines[0]["site"], lines[0]["level"]) == (9092, "a\nb", "info")
    assert "ValueError" in lines[1]["exception"]
    assert lines[1]["level"] == "error"
