"""Every error a person can meet, with a stable code, a one-line cause and the mend.

One catalogue, one exception class. Raise at the edge where the cause is known::

    raise ConsiliumError(errors.STUDY_UNREADABLE, f"{path}: {reason}")

The detail says what was seen; it must never hold a record, a label count or a secret, because details reach logs.
Towards the operator a site has one code only, ``SITE_UNAVAILABLE`` (RULES 14); everything else stays on site.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the catalogue: what can go wrong and how a person mends it."""

    code: str
    area: str
    cause: str
    mend: str


class ConsiliumError(Exception):
    """A fault that happened, with what was seen.

    fault    the catalogue row
    detail   what was seen, one line, free of records and secrets
    """

    def __init__(self, fault: Fault, detail: str = "") -> None:
        self.fault = fault
        self.detail = " ".join(detail.split())
        super().__init__(str(self))

    @property
    def code(self) -> str:
        """The stable code, such as ``CSL-101``."""
        return self.fault.code

    def __str__(self) -> str:
        seen = f": {self.detail}" if self.detail else ""
        return f"{self.fault.code} {self.fault.area}: {self.fault.cause}{seen}. Mend: {self.fault.mend}"

    def __reduce__(self) -> tuple[type[ConsiliumError], tuple[Fault, str]]:
        return (type(self), (self.fault, self.detail))


# 1xx  study, identity, messages -----------------------------------------------------------------------------------
STUDY_UNREADABLE = Fault("CSL-101", "study", "the file is not valid TOML or JSON", "correct the line named")
STUDY_INVALID = Fault("CSL-102", "study", "a field is missing, unknown or out of range", "correct the field named")
STUDY_DIGEST_MISMATCH = Fault(
    "CSL-103", "study", "the bytes are not the study that was signed", "fetch the study again from the operator"
)
STUDY_SIGNATURE_WRONG = Fault(
    "CSL-104", "study", "the operator's signature does not hold", "compare the operator's fingerprint by telephone"
)
STUDY_UNSIGNED = Fault("CSL-105", "study", "the study is not signed", "have the operator sign it")
STUDY_EXPIRED = Fault("CSL-106", "study", "the study has expired", "have the operator sign a study that is still valid")
STUDY_NOT_APPROVED = Fault("CSL-107", "study", "a site has not approved the study", "have the site named approve it")
STUDY_KIND_REFUSED = Fault(
    "CSL-108", "study", "a simulation study is never run on a site's own data", "sign it as a deployment study"
)
STUDY_SOFTWARE = Fault("CSL-109", "study", "this software is outside the study's range", "install a version in range")
IDENTITY_INVALID = Fault("CSL-120", "identity", "the key is not a valid Ed25519 key", "give the key as 64 hex digits")
SIGNATURE_WRONG = Fault("CSL-121", "identity", "a signature does not hold", "check who holds the private key")
IDENTITY_UNKNOWN = Fault("CSL-122", "identity", "the sender is not in the roster", "admit the site in a new study")
ENROLMENT_INVALID = Fault(
    "CSL-140", "enrolment", "the file is not what the other side wrote", "have it sent again, and compare fingerprints"
)
ENROLMENT_FOREIGN = Fault(
    "CSL-141", "enrolment", "the file is for another site or operator", "use the file that was made for you"
)
ENROLMENT_THERE = Fault("CSL-142", "enrolment", "something is there already", "choose an empty folder, or remove it")
ENROLMENT_UNWRITABLE = Fault("CSL-143", "enrolment", "a file cannot be written", "check who may write there")
PEER_MISMATCH = Fault(
    "CSL-144", "enrolment", "the fingerprint given is not that of this peer's key", "ask the peer again, by telephone"
)
PEERS_UNVERIFIED = Fault(
    "CSL-145",
    "enrolment",
    "too few peers are verified for this hospital to hide among",
    "compare fingerprints by telephone, then: consilium-client verify PEER",
)
MESSAGE_MALFORMED = Fault("CSL-130", "message", "the message cannot be read", "check that both sides run one version")
MESSAGE_MISBOUND = Fault(
    "CSL-131", "message", "the message belongs to another study, instance, stage or sender", "none: it was refused"
)
KEY_MISSING = Fault(
    "CSL-150", "keystore", "there is no key that can be read here", "name the file that holds it, or make a key"
)
KEY_UNREADABLE = Fault(
    "CSL-151",
    "keystore",
    "the passphrase is wrong, or the file is not what was written",
    "give the right passphrase, or restore the file",
)
KEY_EXPOSED = Fault(
    "CSL-152", "keystore", "others may read the key", "find out who did, then chmod 600; or make a new key"
)
KEY_EXISTS = Fault("CSL-153", "keystore", "there is a file already, and no key is overwritten", "name another file")
KEY_UNWRITABLE = Fault(
    "CSL-154", "keystore", "the key cannot be written", "free space on its disk and check who may write there"
)
PASSPHRASE_SOURCE = Fault(
    "CSL-155", "keystore", "no passphrase comes from there", "give one of 1 to 1,023 bytes by the source named"
)
POLICY_FORBIDS = Fault(
    "CSL-160", "policy", "this site's policy forbids the study", "change the study, or [policy] in site.toml"
)
POLICY_HOURS = Fault("CSL-161", "policy", "the site does not compute at this hour", "wait, or change hours in [policy]")
POLICY_ROUND = Fault(
    "CSL-162", "policy", "nobody here has allowed this round", "allow it: consilium-client study allow"
)
STUDY_UNKNOWN = Fault(
    "CSL-163", "study", "no study here is so named", "see consilium-client study list, and give more digits"
)
STUDY_UNWRITABLE = Fault("CSL-164", "study", "a file of a study cannot be written", "check who may write there")
BACKUP_INVALID = Fault(
    "CSL-170",
    "backup",
    "the passphrase is wrong, or the file is not the backup that was written",
    "give the passphrase that the keys had then; else take another backup",
)
BACKUP_UNWRITABLE = Fault(
    "CSL-171", "backup", "a backup, or what belongs into it, cannot be read or written", "free space and check who may"
)

# 2xx  privacy, ledger ----------------------------------------------------------------------------------------------
PRIVACY_PARAMETER = Fault("CSL-201", "privacy", "a privacy parameter is out of range", "correct the value named")
PRIVACY_UNREACHABLE = Fault(
    "CSL-202", "privacy", "no noise reaches this epsilon", "raise epsilon, or lower the sampling rate or the steps"
)
PRIVACY_EXCEEDED = Fault(
    "CSL-203", "privacy", "the study spends more than it states", "sign it with the epsilon recomputed here"
)
LEDGER_SPENT = Fault("CSL-204", "ledger", "budget spent", "end here, or open a new account for a new population")
LEDGER_DAMAGED = Fault(
    "CSL-211", "ledger", "the ledger is not what was written", "keep the files; run consilium-client ledger recover"
)
LEDGER_BEHIND = Fault(
    "CSL-212", "ledger", "the ledger is older than what was written or signed", "run consilium-client ledger recover"
)
LEDGER_LOCKED = Fault("CSL-213", "ledger", "another process is writing in the ledger", "try again, or stop the other")
LEDGER_UNWRITABLE = Fault(
    "CSL-214", "ledger", "the ledger or its anchor cannot be written", "free space and check who may write there"
)
LEDGER_ACCOUNT = Fault(
    "CSL-215", "ledger", "the account does not allow this", "name the account that fits, or open one for its population"
)
LEDGER_FOREIGN = Fault("CSL-216", "ledger", "the ledger has a schema that is not known here", "upgrade this software")
LEDGER_ANCHOR = Fault(
    "CSL-217", "ledger", "the anchor is another ledger's", "name the ledger and the anchor that belong together"
)
NOISE_FAULT = Fault("CSL-206", "privacy", "the noise source failed", "do not train on this machine; report it")

# 3xx  backbone, adapters, tasks, preflight -------------------------------------------------------------------------
BACKBONE_MISSING = Fault("CSL-301", "backbone", "a file of the backbone is missing", "fetch the backbone again")
BACKBONE_CHANGED = Fault(
    "CSL-302", "backbone", "a file differs from its SHA-256 in the manifest", "fetch the backbone again"
)
BACKBONE_UNSAFE = Fault(
    "CSL-303", "backbone", "only safetensors weights without remote code are loaded", "convert to safetensors"
)
BACKBONE_UNSUPPORTED = Fault(
    "CSL-304", "backbone", "this architecture cannot be used here", "choose a backbone from docs/recipes.md"
)
BACKBONE_UNREACHABLE = Fault(
    "CSL-305", "backbone", "the source of the backbone cannot be reached", "use a local folder or a mirror"
)
BACKBONE_UNWRITABLE = Fault(
    "CSL-306",
    "backbone",
    "what the operator sends of the backbone cannot be written",
    "free space and check who may write there",
)
ADAPTER_INVALID = Fault("CSL-310", "adapter", "the adapter does not fit this backbone", "correct the field named")
ADAPTER_VECTOR = Fault("CSL-311", "adapter", "a vector has the wrong length or non-finite values", "none: refused")
TASK_LABEL_UNKNOWN = Fault(
    "CSL-321", "task", "a label in the data is not in the study", "map it in the query, or add it to the study"
)
TASK_UNSUPPORTED = Fault(
    "CSL-322", "task", "this backbone or way of transfer cannot do the task", "choose another; the detail says why"
)
PREFLIGHT_REFUSED = Fault(
    "CSL-330", "preflight", "private gradients would be wrong on this model", "use another adapter or backbone"
)
FEATURES_DAMAGED = Fault(
    "CSL-340", "features", "a file of computed features is not what was written", "none: they are computed again"
)
FEATURES_NOT_KEPT = Fault(
    "CSL-341",
    "features",
    "computed features cannot be kept, and every step computes them anew",
    "allow more memory or disk, and check who may write there",
)

# 4xx  secure aggregation -------------------------------------------------------------------------------------------
SECAGG_MALFORMED = Fault("CSL-401", "secagg", "a protocol message cannot be read", "none: it was refused")
SECAGG_ILLEGAL = Fault("CSL-402", "secagg", "the message is not legal in this state", "none: it was refused")
SECAGG_SIGNATURE = Fault("CSL-403", "secagg", "a protocol signature does not hold", "none: it was refused")
SECAGG_THRESHOLD = Fault("CSL-404", "secagg", "too few sites for a private sum", "wait for more sites to be online")
SECAGG_REPLAY = Fault("CSL-405", "secagg", "an instance number went back or was used before", "none: it was refused")
SECAGG_INCONSISTENT = Fault(
    "CSL-406", "secagg", "the server showed different things to different sites", "tell the other sites; stop the study"
)
SECAGG_SHARE = Fault("CSL-407", "secagg", "a share or a recovered key is wrong", "none: the sum was aborted")
SECAGG_VALUE = Fault("CSL-408", "secagg", "a value cannot be encoded", "none: it was refused")
SECAGG_OVERFLOW = Fault("CSL-409", "secagg", "the sum could overflow its modulus", "raise bits or lower the clamp")
SECAGG_ABORTED = Fault("CSL-410", "secagg", "the sum was aborted", "the round is tried again with a new epoch")

# 5xx  data, scenarios ----------------------------------------------------------------------------------------------
DATA_QUERY = Fault("CSL-501", "data", "the query cannot be run", "correct the SELECT")
DATA_FORBIDDEN = Fault(
    "CSL-502",
    "data",
    "what was asked is not one SELECT that only reads, over files in the data folder or a database",
    "read only, and only below the data folder",
)
DATA_COLUMN = Fault("CSL-503", "data", "a column named is not in the query's result", "correct the column roles")
DATA_EMPTY = Fault("CSL-504", "data", "a site has no data", "correct the query, or leave the site out")
DATA_VALUE = Fault("CSL-505", "data", "a value has the wrong type or is missing", "convert it in the query")
DATA_SOURCE = Fault(
    "CSL-506", "data", "the database cannot be read", "check its address, its account's rights and the password"
)
DATA_MISSING_PACKAGE = Fault("CSL-507", "data", "what this needs is not installed", "install the extra named")
DATA_UNWRITABLE = Fault("CSL-508", "data", "the report cannot be written", "free space and check who may write there")
SCENARIO_UNREADABLE = Fault("CSL-510", "scenario", "the file is not valid TOML", "correct the line named")
SCENARIO_INVALID = Fault(
    "CSL-511", "scenario", "a field is missing, unknown or out of range", "correct the field named"
)
PARTITION_IMPOSSIBLE = Fault(
    "CSL-512", "scenario", "the data cannot be divided as asked", "ask for fewer sites or less skew"
)
OUTPUT_UNWRITABLE = Fault("CSL-513", "scenario", "the output folder cannot be written", "choose another --out")
METRICS_INVALID = Fault(
    "CSL-514", "report", "metrics.json is missing, unreadable or holds a figure out of range", "run the scenario again"
)
ENGINE_UNSUITABLE = Fault("CSL-520", "engine", "this engine cannot run the study", "run it with --engine inline")
ENGINE_MISSING = Fault(
    "CSL-521", "engine", "what the engine needs is not installed", "install it: pip install 'consilium[ray]'"
)
ENGINE_FAILED = Fault("CSL-522", "engine", "the engine's processes failed", "run it with --engine inline")
SERVER_FILE_UNREADABLE = Fault("CSL-540", "server file", "the file is not valid TOML", "correct the line named")
SERVER_FILE_INVALID = Fault(
    "CSL-541", "server file", "a field is missing, unknown or out of range", "correct the field named"
)
SITE_FILE_UNREADABLE = Fault("CSL-530", "site file", "the file cannot be read as TOML", "correct the line named")
SITE_FILE_INVALID = Fault(
    "CSL-531", "site file", "a field is missing, unknown or out of range", "correct the field named"
)

# 6xx  site, egress, link -------------------------------------------------------------------------------------------
SITE_UNAVAILABLE = Fault("CSL-600", "site", "unavailable", "ask the site")
EGRESS_REFUSED = Fault("CSL-601", "egress", "a reply is not what the study allows to leave", "none: nothing was sent")
QUORUM_LOST = Fault("CSL-602", "coordinator", "too few sites answered", "wait for more sites, then resume")
EGRESS_LOG = Fault(
    "CSL-603",
    "egress",
    "the log of what left is not what was written, or cannot be written",
    "free space and check who may write there; keep a changed file and move it aside",
)
SITE_RUNNING = Fault("CSL-604", "site", "this site's daemon runs already", "stop the other process")
RELEASE_INVALID = Fault("CSL-610", "release", "the released adapter cannot be written or read", "see the detail")
RELEASE_NOT_KEPT = Fault(
    "CSL-611",
    "release",
    "this site has not been asked to evaluate the study's result",
    "wait for the study's evaluation, or name the released adapter: --release FOLDER",
)
JOURNAL_LOCKED = Fault("CSL-620", "journal", "another process has the journal open", "stop the other process")
JOURNAL_DAMAGED = Fault(
    "CSL-621", "journal", "the journal is not what was written", "keep the file; rejoin under a new study"
)
JOURNAL_FOREIGN = Fault(
    "CSL-622", "journal", "the journal is of another study, site or schema", "give the journal that belongs to it"
)
JOURNAL_UNWRITABLE = Fault(
    "CSL-623", "journal", "the journal cannot be written", "free space on its disk and check who may write there"
)
OPERATOR_LOCKED = Fault(
    "CSL-630", "operator", "another process has the operator's file or database", "try again, or stop the other"
)
OPERATOR_DAMAGED = Fault(
    "CSL-631",
    "operator",
    "the operator's file or database is not what was written",
    "keep it and tell the sites: with a new one, studies begin anew and nobody witnesses how ledgers ended before",
)
OPERATOR_FOREIGN = Fault(
    "CSL-632",
    "operator",
    "the operator's file or database has a schema that is not known here",
    "upgrade this software, or name a file or database that holds nothing else",
)
OPERATOR_UNWRITABLE = Fault(
    "CSL-633",
    "operator",
    "the operator's file or database cannot be written",
    "free space, and check who may write there and that the database's server runs",
)
OPERATOR_URL = Fault(
    "CSL-634",
    "operator",
    "the journal's address is not understood",
    "write sqlite:///path, or postgresql+pg8000://user:password@host/database with %40 for an @ within",
)
OPERATOR_STUDY = Fault("CSL-635", "operator", "the study is not in the journal", "enqueue it first")
OPERATOR_ORDER = Fault("CSL-636", "operator", "the study cannot take this step now", "none: nothing was changed")
SERVER_STOPPED = Fault("CSL-637", "operator", "the server was told to stop", "start it again: the study goes on")
STUDY_STOPPED = Fault("CSL-638", "operator", "the operator has stopped the study", "consilium-server study resume")
LINK_FLWR = Fault(
    "CSL-640", "link", "this flwr is not the version that the link was written for", "install the version named"
)
LINK_REFUSED = Fault(
    "CSL-641",
    "link",
    "the server refuses this site's node key",
    "compare the clocks, and have the operator admit the key",
)
LINK_DOWN = Fault("CSL-642", "link", "the server cannot be reached", "check the address, the proxy and the network")
LINK_TLS = Fault(
    "CSL-643", "link", "the TLS connection cannot be made", "check the certificates, their dates and who signed them"
)
LINK_LISTEN = Fault("CSL-644", "link", "the server cannot listen there", "free the port, or name another")
LINK_TAKEN = Fault(
    "CSL-646", "link", "another process connects with this site's node key", "stop the other; one site runs once"
)
LINK_CERTIFICATE = Fault(
    "CSL-647",
    "link",
    "this hospital's certificate cannot be used",
    "consilium-client renew, and install what comes back",
)
LINK_CLEAR_TEXT = Fault(
    "CSL-648", "link", "what answers there does not speak TLS", "name the server's TLS port; never connect without TLS"
)
LINK_CLOCK = Fault("CSL-649", "link", "the clocks are too far apart", "set this machine's clock, and keep it by NTP")
CONSOLE_EXPOSED = Fault(
    "CSL-650",
    "console",
    "a console listens on a loopback address only",
    "name 127.0.0.1 or ::1, and come from elsewhere through an SSH tunnel",
)
LINK_MALFORMED = Fault("CSL-645", "link", "what the server sent cannot be read", "none: it was refused")


def catalogue() -> tuple[Fault, ...]:
    """Return every fault in order of its code."""
    faults = [value for value in globals().values() if isinstance(value, Fault)]
    return tuple(sorted(faults, key=lambda fault: fault.code))
