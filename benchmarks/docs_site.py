"""Pages of the documentation site that are made when it is built: a hook of mkdocs (``make docs``).

The home page is README; recipes, contributing and changes come from where they stand; the results
explorer and the gallery are made from the recipes and from docs/distilled; the API page lists the
public names, whose docstrings mkdocstrings reads. Nothing of potstill is imported.
"""

from __future__ import annotations

import json
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
BROUGHT = {  # pages that stand outside docs/
    "README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
    "recipes/README.md": "recipes.md",
}  # fmt: skip
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
COLUMNS = (
    "method", "accuracy", "std", "head", "medium", "tail", "start", "random", "data", "factor",
    "IPC", "network", "protocol", "labels", "seconds", "device", "recipe",
)  # fmt: skip
FILTERS = ("method", "data", "factor", "IPC", "network", "protocol", "labels")
API = {
    "Data": ["data.load", "data.load_pair", "data.ImageSet"],
    "Distil": ["app.job.distill", "app.job.Data", "app.crossval.cross_validate", "run.context.Run"],
    "Sets": ["synthetic.artifact.SyntheticSet", "synthetic.ready_made.load_distilled"],
    "Evaluate": ["evaluation.evaluate", "evaluation.protocol.Protocol", "evaluation.record.Score"],
    "Report": ["reports.report", "reports.compare"],
    "Methods": ["methods.base.Method", "methods.base.Matcher", "methods.selector.Selector"],
    "Errors": ["run.errors"],
}


def rows(root: Path = ROOT) -> list[dict[str, Any]]:
    """Every measurement of every recipe, newest first within a recipe."""
    found = []
    for path in sorted((root / "recipes").rglob("*.toml")):
        recipe = tomllib.loads(path.read_text("utf-8"))
        about, data = recipe["distill"], recipe.get("data", {})
        for row in reversed(recipe.get("measured", [])):
            changed = ", ".join(f"{k} {v}" for k, v in recipe.get("method", {}).items())
            one = {
                "method": about["method"], "data": data.get("data", "digits"),
                "factor": data.get("imbalance_factor", 1), "IPC": about.get("ipc", 10),
                "protocol": f"{row['protocol']} {row['protocol_hash']}",
                "labels": row.get("tier", "–"), "start": row.get("start_accuracy"),
                "random": row.get("random_accuracy"), "changed": changed,
                "recipe": path.relative_to(root / "recipes").with_suffix("").as_posix(),
            }  # fmt: skip
            found.append({key: row.get(key) for key in COLUMNS} | one)
    return found


def explorer(root: Path = ROOT) -> str:
    """The page with all measurements, to be sorted and filtered in the browser."""
    table = rows(root)
    chosen = "".join(
        f'<label>{key} <select data-key="{key}"><option value="">all</option>'
        + "".join(f"<option>{value}</option>" for value in sorted({str(r[key]) for r in table}))
        + "</select></label> "
        for key in FILTERS
    )
    head = "".join(f'<th data-key="{key}"><button>{key}</button></th>' for key in COLUMNS)
    stored = json.dumps(table).replace("</", "<\\/")
    script = (ROOT / "benchmarks" / "docs_site.js").read_text("utf-8")
    return (
        "---\nhide: [toc]\n---\n# Results explorer\n\n"
        "Every measurement of every recipe: choose what to see, click a head "
        "to sort. Compare rows of one data set, factor, IPC, network and protocol.\n\n"
        f'<div class="explorer" style="overflow-x:auto"><p>{chosen}</p><p class="count"></p>'
        f"<table><thead><tr>{head}</tr></thead><tbody></tbody></table></div>\n\n"
        f'<script type="application/json" id="rows">{stored}</script>\n'
        f"<script>\n{script}</script>\n"
    )


def gallery(root: Path = ROOT) -> str:
    """Pictures of the sets that come with the package, and of each method's page."""
    ready = sorted((root / "docs" / "distilled").glob("*.png"))
    parts = ["# Gallery", "Sets that come with the package: `potstill.load_distilled(NAME)`."]
    parts += [f"## {path.stem}\n\n![{path.stem}](distilled/{path.name})" for path in ready]
    parts += ["## Of the methods"]
    for path in sorted((root / "docs" / "methods").glob("*.png")):
        parts.append(
            f"[{path.stem}](methods/{path.stem}.md)\n\n![{path.stem}](methods/{path.name})"
        )
    return "\n\n".join(parts) + "\n"


def api() -> str:
    """Directives of mkdocstrings for the public names."""
    parts = ["# API"]
    for title, names in API.items():
        parts += [f"## {title}", *(f"::: potstill.{name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def moved(text: str, at: str) -> str:
    """Links of a document as they lead from its place on the site.

    Args:
        at: where it stands in the repository. What has no page keeps its words alone.
    """
    page = BROUGHT.get(at, at.removeprefix("docs/"))

    def link(found: re.Match[str]) -> str:
        target, _, anchor = found[3].partition("#")
        if not target or re.match(r"\w+:", found[3]):
            return found[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(at), target))
        if place in BROUGHT:
            there = BROUGHT[place]
        elif place.startswith("docs/"):
            there = place.removeprefix("docs/")
        else:
            return found[2]
        there = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{found[1]}[{found[2]}]({there}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, text)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made or brought."""
    made = {"explorer.md": explorer(), "gallery.md": gallery(), "api.md": api()}
    made |= {page: moved((ROOT / at).read_text("utf-8"), at) for at, page in BROUGHT.items()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Move the links of pages in docs/; those that were made are moved already."""
    made = {*BROUGHT.values(), "explorer.md", "gallery.md", "api.md"}
    at = page.file.src_uri
    return markdown if at in made else moved(markdown, f"docs/{at}")
