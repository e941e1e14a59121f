"""`consilium-sim tune`: a search for training settings on records that nobody has to be protected from."""
