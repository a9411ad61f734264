"""Search for the best items: the largest inner products with a fixed matrix of item vectors."""

from __future__ import annotations

from .exact import ExactTopK
from .faiss_index import FaissTopK
from .int8 import Int8TopK
from .lists import NONE, Excluded, ExtraScores, TopItems, TopK

__all__ = ["NONE", "ExactTopK", "Excluded", "ExtraScores", "FaissTopK", "Int8TopK", "TopItems", "TopK"]
