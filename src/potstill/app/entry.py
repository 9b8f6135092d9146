"""The command ``potstill``: what it says without work is said before torch is imported."""

from __future__ import annotations

import os
import sys

from potstill import __version__

__all__ = ["USAGE", "main"]

USAGE = """potstill {version}: distil a long-tailed image set into a small balanced one

  potstill distill METHOD --data SOURCE --ipc N --out DIR    make a synthetic set
  potstill evaluate DIR --network NAME [NAME ...]            train students on it and score them
  potstill import FILE --data SOURCE --out DIR               somebody else's set, as if made here
  potstill relabel DIR --labels KIND --out DIR               the same images, labelled by a teacher
  potstill report DIR                                        write its HTML page
  potstill compare DIR DIR [DIR ...] --out PAGE.html         set runs side by side on one page
  potstill methods [--wide]                                  what can be chosen as METHOD
  potstill backbone train --data SOURCE --out DIR            train a small backbone without labels
  potstill crossval METHOD --data SOURCE --folds N --out DIR the same for each of N folds, pooled
  potstill recipe FILE.toml                                  distil, evaluate and report as written
  potstill push DIR OWNER/NAME                               upload a set to the Hugging Face hub
  potstill cache                                             what is kept for the next run; prune it
  potstill completion bash                                   a script that completes words on Tab

Each command explains its flags with --help, e.g. potstill distill csdm --help.
"""


def main(words: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    words = sys.argv[1:] if words is None else words
    said = ""
    if not words or words[0] in ("-h", "--help", "help"):
        said = USAGE.format(version=__version__)
    elif words[0] in ("-V", "--version"):
        said = f"{__version__}\n"
    if not said:
        from potstill.app.cli import main as run

        return run(words)
    try:
        sys.stdout.write(said)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
