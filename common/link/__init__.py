"""How envelopes ride on Flower. The only package that may touch flwr's non-public modules."""

import os

# Before flwr is imported for the first time: it phones home and looks for updates by default.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
