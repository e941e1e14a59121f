"""`consilium-client run`: the daemon, from its file to its end."""

from __future__ import annotations

import contextlib
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from client.config import SiteConfig
from client.site import Workload
from common.agreement import Agreement
from common.console import coded_errors
from common.errors import ConsiliumError
from common.identity import Identity
from common.study import Kind

Make = Callable[[SiteConfig, Agreement, Identity], Workload]


def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="the site's file")] = Path("site.toml"),
) -> None:
    """Answer the operator for the studies that were approved here, until told to stop."""
    with coded_errors():
        serve(config, _prepared)


def serve(file: Path, make: Make, *, kind: Kind = Kind.DEPLOYMENT) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    file  the site's; its policy, verified peers and certificate may change while the daemon runs
    make  makes what a site computes under a study
    kind  of the studies that are run
    """
    from client.daemon import Daemon, alone
    from client.egress_log import EgressLog
    from client.ledger import SqliteLedger
    from common.keystore import read_identity, read_node_key, read_passphrase
    from common.link.node import NodeLink, Server, client_tls
    from common.logs import log, to_stderr

    config = SiteConfig.load(file)
    passphrase = read_passphrase(config.keys.passphrase)
    identity = read_identity(config.keys.identity, passphrase)
    node_key = read_node_key(config.keys.node, passphrase)
    link = config.link
    ca, certificate, key = (None if place is None else str(place) for place in (link.ca, link.certificate, link.key))

    def tls() -> ssl.SSLContext:
        return client_tls(ca, certificate, key, passphrase)

    server = Server(link.server, tls(), link.proxy, renewed=tls)
    to_stderr()
    told = log("consilium.link")
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(config.state))
        egress = stack.enter_context(EgressLog(config.egress_file))
        ledger = stack.enter_context(SqliteLedger(config.ledger_file, config.ledger.anchor))
        daemon = Daemon(
            config,
            identity,
            lambda agreed: make(config, agreed, identity),
            ledger,
            record=egress.payload,
            kind=kind,
            current=lambda: SiteConfig.load(file),
        )
        stack.callback(daemon.close)

        def tell(error: ConsiliumError | None) -> None:
            if error is None:
                told.info("connected", server=link.server)
            else:
                told.warning("link", code=error.code, detail=str(error))

        node = NodeLink(
            server,
            node_key,
            daemon,
            write=egress.control,
            slots=link.reply_slots,
            tell=tell,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: node.stop())
        daemon.warm()
        node.serve()


def _prepared(config: SiteConfig, agreed: Agreement, identity: Identity) -> Workload:
    from client.preparing import prepare

    return prepare(config, agreed, identity)
