"""The key of a bookshop that keeps a ledger. It is no secret: whatever is signed with it is made up."""

from __future__ import annotations

from shared.privacy.signing import SigningPair

KEYS = SigningPair(b"bookshop" * 4)
