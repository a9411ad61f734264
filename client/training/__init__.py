"""DP-SGD on one user at a time, and the local round that pays for it first."""
