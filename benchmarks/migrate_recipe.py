"""Bring recipes of potstill 0.1 into today's words, in place: ``python migrate_recipe.py FILE ...``

Only the ``[method]`` table changes: kinds of parts have names of their own now.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

RENAMED = {
    r"starved = ": "shortage = ",
    r"networks = (\d+)": r"members = \1",
    r"members = 0\b": 'networks = "random"',
    r'label_kind = "learned"': 'labels = "soft"',
    r"label_kind = ": "labels = ",
    r'canvas = "pixels"': 'levels = "one"',
    r'formation = "multi"': 'canvas = "multi-formation"',
    r'formation = "single"\n': "",
}
PIXELS = ("dm", "mtt", "ftd", "tesla", "datm", "lad")  # canvas is "pixels" unless said otherwise


def migrated(text: str) -> str:
    """Return the text of a recipe in today's words."""
    head, table, rest = (
        re.split(r"(?ms)(^\[method\]\n.*?)(?=^\[|\Z)", text, maxsplit=1)
        if ("[method]" in text)
        else (text, "", "")
    )
    for old, new in RENAMED.items():
        table = re.sub(rf"(?m)^{old}", new, table)
    method = re.search(r'(?m)^method = "(\w+)"', text)
    tiled = re.search(r"(?m)^factor = [2-8]", table) and "canvas = " not in table
    if tiled and method and method[1] in PIXELS:
        table = table.replace("factor = ", 'canvas = "tiled"\nfactor = ', 1)
    return head + table + rest


for name in sys.argv[1:]:
    path = Path(name)
    before = path.read_text("utf-8")
    if (after := migrated(before)) != before:
        path.write_text(after, "utf-8")
        print(path)
