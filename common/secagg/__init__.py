"""Secure aggregation: the server learns a sum and nothing about any site's part in it.

Sans-I/O, after h11: bytes in, bytes out; no socket, no clock, no Flower, no torch. :class:`SiteSession` and
:class:`ServerSession` hold the two sides, :mod:`common.secagg.transitions` every legal order of messages,
:mod:`common.secagg.terms` the thresholds that no message can change. What must never be added here: a way to mask one
update twice, a second view of one instance, a threshold that comes from the server. See docs/secure-aggregation.md.
"""

from common.secagg.encoding import Encoding
from common.secagg.epoch import Sum
from common.secagg.instance import Ticket
from common.secagg.server import ServerSession
from common.secagg.site import SiteSession
from common.secagg.terms import Terms
from common.secagg.transitions import Phase

__all__ = ["Encoding", "Phase", "ServerSession", "SiteSession", "Sum", "Terms", "Ticket"]
