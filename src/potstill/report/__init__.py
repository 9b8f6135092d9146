"""Tables, figures, the report page, the data set card: formats what was measured, no more."""

from potstill.report.card import write_card
from potstill.report.page import report
from potstill.report.source import RunFolder, read_run
from potstill.report.tables import score_table

__all__ = ["RunFolder", "read_run", "report", "score_table", "write_card"]
