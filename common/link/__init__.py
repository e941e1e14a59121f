"""The only place that touches the non-public modules of flwr."""
