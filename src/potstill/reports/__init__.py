"""Tables, figures, the report page, the data set card: formats what was measured, no more."""

from potstill.reports.card_scores import refresh_card, write_card
from potstill.reports.compare import compare
from potstill.reports.page import report
from potstill.reports.source import RunFolder, read_run
from potstill.reports.table_text import score_table

__all__ = [
    "RunFolder",
    "compare",
    "read_run",
    "refresh_card",
    "report",
    "score_table",
    "write_card",
]
