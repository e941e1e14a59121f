"""Consortia on one machine: real processes, real keys, TLS on loopback. For demonstrations, tests and measurements."""
