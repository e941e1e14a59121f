"""Stock Flower beside the link: SuperLink, SuperNodes and a run as its documentation starts them, timed stage by stage.

The app echoes a nonce. No TLS and no node authentication, which is the easiest case for it; ours has both.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simulations.network.consortium import HOST
from simulations.network.processes import end, free_port

_STAGES = 5
_LIMIT = 300.0
_FILES = {
    "app/LICENSE": "Apache-2.0\n",
    "app/probe/__init__.py": "",
    "app/pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "probe"
version = "1.0.0"
description = "one stage after the other"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41,<1.42"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "nobody"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "probe.server:app"
clientapp = "probe.client:app"

[tool.flwr.app.config]
stages = {stages}
sites = {sites}
""",
    "app/probe/client.py": """\
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message, context):
    return Message(RecordDict({{"c": ConfigRecord({{"nonce": message.content["c"]["nonce"]}})}}), reply_to=message)
""",
    "app/probe/server.py": """\
import os
import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < int(context.run_config["sites"]):
        time.sleep(0.2)
    for _ in range(int(context.run_config["stages"])):
        start = time.perf_counter()
        content = RecordDict({{"c": ConfigRecord({{"nonce": os.urandom(32)}})}})
        replies = list(grid.send_and_receive([Message(content, node, "query") for node in grid.get_node_ids()]))
        answered = sum(not reply.has_error() for reply in replies)
        print("STAGE", time.perf_counter() - start, answered, flush=True)
""",
    "home/config.toml": """\
[superlink]
default = "here"

[superlink.here]
address = "{host}:{port}"
insecure = true
""",
}


def stock_seconds(sites: int) -> float | str:
    """Return the median seconds of a stage with some SuperNodes, or a word on why there is none."""
    with tempfile.TemporaryDirectory(prefix="consilium-stock-") as name, contextlib.ExitStack() as stack:
        folder, port = Path(name), free_port()
        for file, text in _FILES.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text.format(stages=_STAGES, sites=sites, host=HOST, port=port))

        environment = os.environ | {
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        }

        def started(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(  # noqa: S603  flwr's own commands
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
            )
            stack.callback(end, process)
            return process

        try:
            started("flower-superlink", "--insecure", "--host", HOST, "--port", str(port),
                    "--disable-runtime-dependency-installation")  # fmt: skip
            for _ in range(sites):
                started("flower-supernode", "--insecure", "--superlink", f"{HOST}:{port}", "--port", str(free_port()))
            return _timed(folder / "app", environment, sites)
        except (OSError, subprocess.SubprocessError) as error:
            return type(error).__name__


def _timed(app: Path, environment: dict[str, str], sites: int) -> float | str:
    end_of_patience = time.monotonic() + _LIMIT
    while time.monotonic() < end_of_patience:
        done = subprocess.run(  # noqa: S603  flwr's own command
            ["flwr", "run", str(app), "here", "--stream"],  # noqa: S607  found by the PATH above
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=_LIMIT,
        )
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith("STAGE")]
        if len(lines) == _STAGES and all(int(line[2]) == sites for line in lines):
            return statistics.median(float(line[1]) for line in lines)
        # The SuperLink may not listen yet.
        time.sleep(1.0)
    return "no run came to its end"
