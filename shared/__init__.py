"""What both sides must agree on: no network, no private data."""
