"""The report that people read: one HTML file that needs no network."""

from vlchat.evaluate.page.inputs import (
    Beside,
    Calibration,
    Confusion,
    Line,
    Report,
    Row,
    Said,
    Score,
    confusion,
)
from vlchat.evaluate.page.writing import write_comparison_page, write_page

__all__ = [
    "Beside",
    "Calibration",
    "Confusion",
    "Line",
    "Report",
    "Row",
    "Said",
    "Score",
    "confusion",
    "write_comparison_page",
    "write_page",
]
