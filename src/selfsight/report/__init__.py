"""The report of a run: one page with what it learned, what it finds alike, and how good it is with few labels."""

from selfsight.report.page import write_report

__all__ = ["write_report"]
