"""A whole study over TLS beside an admitted node that cheats all the time: it ends with what the honest sites gave."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.fleet_pb2 import PushMessagesResponse

from server.attendance import Deadline
from server.conduct import Conduct
from server.coordinator import Coordinator
from server.guard import Limits
from server.witnesses import MemoryWitnesses
from tests.federations import DIMENSION, federation, mean_update
from tests.links import Link, Member, Speaker, linked, reply_to, words


def cheat(link: Link, member: Member, over: threading.Event, replies: list[RecordDict]) -> None:
    """Answer whatever is asked with forged, copied and half replies, each time another way, until it is over."""
    ways = 0
    with Speaker(link, member) as speaker:
        speaker.activate()
        while not over.is_set():
            pulled = speaker.pull()
            if not pulled.messages_list:
                continue
            ways += 1
            head = pulled.messages_list[0]
            content = replies[0] if ways % 3 == 0 and replies else words("forged")
            reply = reply_to(head, member, content, speaks_as=member.node - ways % 2)
            for waiting in list(link.relay.state.message_ins_store):
                stolen = reply_to(head, member, content)
                stolen.request.messages_list[0].metadata.reply_to_message_id = waiting
                if waiting != head.metadata.message_id:
                    assert speaker.post("push-messages", stolen.request).status_code in (200, 403)
            response = speaker.post("push-messages", reply.request)
            assert response.status_code == 200
            if ways % 2:
                opened = PushMessagesResponse()
                opened.ParseFromString(response.content)
                for name in opened.objects_to_push:
                    speaker.push_object(head.metadata.run_id, opened.session_id, name, reply.contents[name])


def test_a_study_beside_a_node_that_cheats_ends_as_it_should(tmp_path: Path) -> None:
    made = federation(4)
    over = threading.Event()
    copied: list[RecordDict] = []
    with linked(tmp_path, limits=Limits(refusals=100_000)) as link, contextlib.ExitStack() as stack:
        grid = stack.enter_context(link.relay.run())
        intruder = link.admitted("intruder")
        thread = threading.Thread(target=cheat, args=(link, intruder, over, copied), daemon=True)
        for name, site in made.sites.items():
            app = site.app()

            def answer(message: Message, context: Context, app: ClientApp = app) -> Message:
                reply = app(message, context)
                if reply.has_content():
                    copied[:] = [reply.content]
                return reply

            stack.enter_context(link.serving(link.admitted(name), answer))
        thread.start()
        stack.callback(thread.join, 20)
        stack.callback(over.set)
        while len(list(grid.get_node_ids())) < 5:
            link.relay.wait(link.relay.told(), 0.1)
        outcome = Coordinator(
            made.signed.agreement,
            made.signed.operator,
            np.zeros(DIMENSION, dtype=np.float32),
            witnesses=MemoryWitnesses(),
            conduct=Conduct(deadline=Deadline(30.0)),
        ).run(grid)
    everyone = tuple(sorted(made.sites))
    assert [done.survivors for done in outcome.rounds] == [everyone] * 3
    np.testing.assert_allclose(outcome.vector, 3 * mean_update(made, everyone), atol=1e-3)
    assert {len(ledger.charges(made.signed.study.digest)) for ledger in made.ledgers.values()} == {4}
