"""Sentences stay one line that people can read, whatever stands in the files they are about."""

from __future__ import annotations

import pytest

from potstill.run import ArtifactError


def test_a_long_value_does_not_flood_the_terminal():
    said = str(ArtifactError(f"/a/file: kind is {'x' * 1_000_000}; save it anew"))
    assert said.startswith("/a/file: kind is xxx") and said.endswith("xxx; save it anew")
    assert len(said) < 2000


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2Jb", "\ud800"])
def test_control_characters_are_written_out(text):
    said = str(ArtifactError(text * 1000))
    assert said.isprintable() and len(said) < 2000
