"""The privacy plan, its accounting and its statement."""
