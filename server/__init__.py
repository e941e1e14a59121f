"""The operator's side: coordinator, aggregation, release. Imports only common."""
