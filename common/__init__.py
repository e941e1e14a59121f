"""What both sides must agree on. Imports neither client nor server nor simulations."""
