"""Embeddings at work: search by similarity, duplicates, and which images to label next."""

from selfsight.search.duplicates import DuplicateConfig, Group, duplicates, write_groups
from selfsight.search.index import Entry, Hit, Index, Where
from selfsight.search.select import Strategy, select
from selfsight.search.sync import Updated, update

__all__ = [
    "DuplicateConfig",
    "Entry",
    "Group",
    "Hit",
    "Index",
    "Strategy",
    "Updated",
    "Where",
    "duplicates",
    "select",
    "update",
    "write_groups",
]
