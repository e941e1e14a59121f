"""The audit: an attacker plants canary patients at one site and looks at everything that leaves it (RULES 17).

``study`` runs it, ``canaries`` are planted, ``game`` tosses the coins and collects what leaves, ``reading`` turns one
outgoing delta into scores, ``bounds``, ``mechanism`` and ``power`` are the statistics, ``membership`` attacks the
released adapter, ``sabotage`` breaks the mechanism on purpose so that the audit can be seen to notice.
"""
