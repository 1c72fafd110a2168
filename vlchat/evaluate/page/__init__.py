"""The report that people read: one HTML file that needs no network."""

from vlchat.evaluate.page.building import choose, explain, report_of
from vlchat.evaluate.page.comparing import Change, Compared, ComparisonPage, Pair, compared
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
    "Change",
    "Compared",
    "ComparisonPage",
    "Confusion",
    "Line",
    "Pair",
    "Report",
    "Row",
    "Said",
    "Score",
    "choose",
    "compared",
    "confusion",
    "explain",
    "report_of",
    "write_comparison_page",
    "write_page",
]
