"""The tests that need a GPU, one line of JSON each as soon as it is known.

    python benchmarks/gpu_tests.py [--tests tests/test_gpu.py]

A test that hangs costs its own limit where ``pytest-timeout`` is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EACH = 120  # seconds of one test


class Teller:
    """Tells how each test went, past whatever captures output."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
        self.outcomes: dict[str, str] = {}

    def tell(self, **facts: Any) -> None:
        print(f"\n{json.dumps(facts)}", file=self.out, flush=True)  # after pytest's own dots

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("::", 1)[-1]
        if report.when == "call" or report.outcome != "passed":  # set-up that failed or skipped
            if self.outcomes.get(name) != "failed":
                self.outcomes[name] = report.outcome
            facts = {"test": name, "outcome": report.outcome, "seconds": round(report.duration, 2)}
            if report.failed:
                facts["error"] = report.longreprtext.strip().splitlines()[-1][:300]
            self.tell(**facts, figure=self.figure())

    def figure(self) -> str:
        counts = {
            what: sum(outcome == what for outcome in self.outcomes.values())
            for what in ("passed", "failed", "skipped")
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tests", default="tests/test_gpu.py")
    options = parser.parse_args()
    os.chdir(ROOT)
    # settings of pyproject.toml name plugins that need not be there
    words = ["-q", "--tb=short", "-o", "addopts=", "-p", "no:cacheprovider", options.tests]
    if importlib.util.find_spec("pytest_timeout") is not None:
        words += ["--timeout", str(EACH)]
    teller = Teller()
    code = int(pytest.main(words, plugins=[teller]))
    failed = [name for name, outcome in teller.outcomes.items() if outcome == "failed"]
    if not any(outcome != "skipped" for outcome in teller.outcomes.values()) and not code:
        teller.tell(skipped="all tests were skipped: they found no NVIDIA GPU")
    elif code:
        said = f"failed: {', '.join(failed)}" if failed else f"pytest ended with exit code {code}"
        print(said, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
