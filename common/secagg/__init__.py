"""Secure aggregation, sans-I/O: bytes and events in, bytes and events out."""
