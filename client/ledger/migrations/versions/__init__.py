"""Schemas, oldest first."""
