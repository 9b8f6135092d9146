"""Records of a run and recipes, altered by grammar or by bytes: commands say one sentence or run.

Never a traceback, nor a hang; a command that refuses leaves every file as it was.
"""

from __future__ import annotations

import json
import math
import random
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import ground
import mutate
from cases import Case, Fault, cli, draw_for, judged, trials
from test_artifacts import STUDENT, displaced

RECORDS = ("run.json", "scores.json", "metrics.jsonl", "synthetic/provenance.json")
DEAR = {"method": ("steps", "members", "network", "pool_epochs"), "evaluate": ("network", "runs")}


def spoil(path: Path, draw: random.Random) -> str:
    """Damage a record; return how, in a word or two."""
    content, how = path.read_bytes(), draw.random()
    if how < 0.05:
        return displaced(path, draw)
    if how < 0.25:
        what, after = mutate.damaged(content, draw)
    elif path.suffix == ".jsonl":
        lines = content.decode().splitlines()
        place = draw.randrange(len(lines))
        what, lines[place] = mutate.altered(json.loads(lines[place]), draw)
        after = "\n".join(lines).encode("utf-8", "surrogatepass")
    else:
        what, text = mutate.altered(json.loads(content), draw)
        after = text.encode("utf-8", "surrogatepass")
    path.write_bytes(after)
    return what


def contents(place: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock."""
    return {str(p): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file() and p.suffix}


def sound_page(page: Path) -> None:
    if page.exists() and mutate.MARK in page.read_text("utf-8"):
        raise Fault("text of a file stands unescaped on the page")


def sound_scores(place: Path) -> None:
    """An evaluation that ran has left a score that is a number."""
    own = [r for r in json.loads((place / "scores.json").read_text())["scores"] if r["network"]]
    if not own or not math.isfinite(own[-1]["accuracy"]["mean"]):
        raise Fault("evaluate ran without a score")


def record_cases(root: Path, seed: int, numbers: range) -> Iterator[Case]:
    """Records of a run, met by the commands that read them."""
    template, place, page = ground.finished(root), root / "spoilt", root / "page.html"
    commands = {
        "evaluate": ["evaluate", str(place), *shlex.split(STUDENT)],
        "report": ["report", str(place), "--out", str(page)],
        "compare": ["compare", str(template), str(place), "--out", str(page)],
        "distill": ground.words("csdm", root / "source", place),
    }
    for number in numbers:
        draw = draw_for("records", seed, number)
        name, record = draw.choice(sorted(commands)), draw.choice(RECORDS)

        def run(name: str = name, record: str = record, draw: random.Random = draw) -> str:
            ground.fresh(template, place)
            page.unlink(missing_ok=True)
            spoil(place / record, draw)
            before = contents(place)
            ended = cli(commands[name])
            outcome = judged(ended, (0, 2, 4))
            sound_page(page)
            after = contents(place)
            changed = [name for name in before | after if before.get(name) != after.get(name)]
            if outcome == "refused" and changed:
                raise Fault(f"refused, but {changed} are others: {ended.said[-300:]!r}")
            if outcome == "ran" and name == "evaluate":
                sound_scores(place)
            return f"{name}: {outcome}"

        yield Case(number, f"{name} with another {record}", run, seconds=20.0)


def recipe_cases(root: Path, seed: int, numbers: range) -> Iterator[Case]:
    """Recipes, altered line by line."""
    text = ground.RECIPE.format(source=ground.pictures(root / "source"))
    for number in numbers:
        draw = draw_for("recipes", seed, number)

        def run(draw: random.Random = draw, number: int = number) -> str:
            path = root / "cell.toml"
            after = altered(text, draw)
            path.write_bytes(after)
            words = ["recipe", str(path), "--out", str(root / f"cell-{number}")]
            ended = cli([*words, *shlex.split(ground.MACHINE)])
            outcome = judged(ended, (0, 2, 3, 4))
            if outcome == "refused" and (root / f"cell-{number}" / "synthetic").exists():
                raise Fault(f"refused after an hour of distilling: {ended.said[-300:]!r}")
            return f"recipe: {outcome}"

        yield Case(number, "an altered recipe", run, 30, 500)


def altered(text: str, draw: random.Random) -> bytes:
    """Another recipe that does not ask for much more work."""
    while True:
        if draw.random() < 0.25:
            after = mutate.damaged(text.encode(), draw)[1]
        else:
            after = mutate.altered_toml(text, draw)[1].encode()
        try:
            tables = tomllib.loads(after.decode())
        except (ValueError, RecursionError):
            return after
        found = {name: tables.get(name) for name in DEAR}
        if all(isinstance(found[n], dict) and key in found[n] for n in DEAR for key in DEAR[n]):
            return after


def test_commands_meet_altered_records_with_a_sentence(tmp_path):
    with ground.environment(tmp_path):
        ground.warm()
        tally = trials(record_cases(tmp_path, 0, range(12)))
    assert not tally.failures, "\n".join(tally.failures)
    assert any("refused" in kind for kind in tally.outcomes)


def test_altered_recipes_are_a_sentence_or_run(tmp_path):
    with ground.environment(tmp_path):
        ground.warm()
        tally = trials(recipe_cases(tmp_path, 0, range(16)))
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.outcomes["recipe: refused"] > 5
