"""Pages and pictures: what a run learned, what it looks at, and how good it is with few labels; runs side by side."""

from selfsight.report.comparison import Comparison, Entry, print_comparison, write_comparison
from selfsight.report.copies import write_copies
from selfsight.report.looks import draw_looks
from selfsight.report.page import write_report
from selfsight.report.trained import write_trained

__all__ = [
    "Comparison",
    "Entry",
    "draw_looks",
    "print_comparison",
    "write_comparison",
    "write_copies",
    "write_report",
    "write_trained",
]
