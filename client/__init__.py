"""The hospital's side: data, private training, preflight, egress. Imports only common."""
