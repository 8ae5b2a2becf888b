"""Embeddings in use: written to one file, searched, cleaned, and asked what to label first."""

from __future__ import annotations

from selfsame.index.ask import dedup, outliers, search, select
from selfsame.index.read import Index
from selfsame.index.write import embed

__all__ = ["Index", "dedup", "embed", "outliers", "search", "select"]
