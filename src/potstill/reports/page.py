"""One static page about a run: self-contained HTML without scripts, readable on paper and phone."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.reports import figures, tables
from potstill.reports.source import RunFolder, part, read_run
from potstill.run.checkpoint import write_bytes

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["report"]

_CURVES = ("distance", "amplitude_share", "amplitude_syn", "calibration")
_FRAMES = 4  # pictures of the way to the result
_VALUES = 24  # entries of a list that are written out
_DEPTH = 6


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run folder (or a saved synthetic set) and return its path.

    Everything shown is read from ``run.json``, ``metrics.jsonl``, ``scores.json``,
    ``provenance.json`` and the pictures; without scores the page says how to get them.

    Args:
        folder: the run. out: the page; ``report.html`` in the folder by default.

    Raises:
        InputError: no run there. ArtifactError: a file is damaged. StorageError: cannot write.
    """
    run = read_run(folder)
    path = run.folder / "report.html" if out is None else Path(out).expanduser()
    write_bytes(path, _html(run).encode("utf-8", "replace"))
    return path


def _html(run: RunFolder) -> str:
    from jinja2 import ChainableUndefined, Environment
    from markupsafe import Markup

    here = Path(__file__).parent
    environment = Environment(
        autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"score": _score, "size": tables.size, "time": _time, "number": _number}
    template = environment.from_string((here / "page.html").read_text("utf-8"))
    curves = [name for name in _CURVES if _recorded(run, name)]
    last = run.scores[-1] if run.scores else {}
    return template.render(
        css=Markup((here / "page.css").read_text("utf-8")),
        run=run,
        title=_title(run),
        last=last,
        records=[_record(record) for record in reversed(run.scores)],
        total=sum(run.counts),
        times=max(run.counts) / max(1, min(run.counts)) if run.counts else 1,
        preview=_picture(run.preview, 1100),
        real=_picture(run.real, 1100),
        counts=_svg(figures.counts_bar(run.counts, run.classes), "real images per class")
        if run.counts and len(run.classes) == len(run.counts)
        else None,
        counts_wide=len(run.counts) > 12,
        losses=_svg(figures.loss_curves(run.metrics), "loss terms over steps")
        if any(part(r, "loss") for r in run.metrics)
        else None,
        curves=[
            {
                "title": figures.curve_title(name),
                "svg": _svg(figures.class_curves(run.metrics, name, run.counts), name),
            }
            for name in curves
        ],
        frames=_frames(run.pictures),
        protocols=_protocols(run.scores),
        provenance=_sections(run.provenance or run.job),
    )


def _title(run: RunFolder) -> str:
    source = run.data.get("source") or "A synthetic set"
    return f"{source}, distilled by {run.method}" if run.method else str(source)


def _record(record: dict[str, Any]) -> dict[str, Any]:
    """What the template needs of one score record."""
    classes = part(record, "per_class").get("mean")
    return {
        "facts": record,
        "rows": tables.score_table([record]),
        "protocol": tables.protocol_label(record.get("protocol")),
        "warn": part(record, "protocol").get("selection") == "test_max",
        "classes": _svg(figures.per_class_bars(record), "accuracy per class") if classes else None,
        "wide": len(classes or ()) > 12,
    }


def _recorded(run: RunFolder, name: str) -> bool:
    return any(isinstance(part(r, "classes").get(name), list) for r in run.metrics)


def _protocols(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every protocol that some score was taken under, once."""
    seen: dict[str, dict[str, Any]] = {}
    for record in reversed(records):
        for protocol in (record.get("protocol"), part(record, "full").get("protocol")):
            if isinstance(protocol, Mapping):
                rest = {k: v for k, v in protocol.items() if k != "description"}
                label = tables.protocol_label(protocol)
                about = str(protocol.get("description", ""))
                about = about.removeprefix(f"{label.removesuffix(' TEST-MAX')}: ")
                seen[label] = {"label": label, "about": about, "rows": _flat(rest)}
    return list(seen.values())


def _sections(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Provenance by its top-level keys; single values come first, without a heading."""
    single = {k: v for k, v in facts.items() if not isinstance(v, (dict, list))}
    nested = {k: v for k, v in facts.items() if k not in single and k != "scores"}
    parts = [{"name": "", "rows": _flat(single)}] if single else []
    return parts + [{"name": key, "rows": _flat(value)} for key, value in nested.items()]


def _flat(value: Any, name: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """Nested facts as (dotted name, text); long lists are cut."""
    if isinstance(value, Mapping) and depth < _DEPTH:
        nested = [_flat(v, f"{name}.{k}" if name else str(k), depth + 1) for k, v in value.items()]
        return [row for rows in nested for row in rows]
    if isinstance(value, list) and depth < _DEPTH and any(isinstance(v, Mapping) for v in value):
        return _flat({str(i): v for i, v in enumerate(value[:_VALUES])}, name, depth + 1)
    if isinstance(value, list):
        text = ", ".join(str(v)[:200] for v in value[:_VALUES])
        more = f", … ({len(value):,} in all)" if len(value) > _VALUES else ""
        return [(name, (text or "none") + more)]
    return [(name, "–" if value is None else str(value)[:2000])]


def _svg(content: bytes, label: str) -> Markup:
    """A figure for use within HTML: colours become theme variables, the size becomes fluid."""
    from markupsafe import Markup, escape

    text = content.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z]+2?[dD]?_\d+"', "", text)  # groups; not clips and markers
    size = re.search(r'<svg[^>]*? width="([\d.]+)pt"', text)
    width = round(float(size.group(1)) * 4 / 3) if size else 500  # CSS pixels
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' d="[^"]+"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    for name, colour in figures.COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    head = f'<svg role="img" aria-label="{escape(label)}" style="--natural:{width}px"'
    return Markup(text.replace("<svg", head, 1))


def _frames(pictures: Sequence[Path]) -> list[dict[str, Any]]:
    """An even choice of the pictures drawn on the way, first and last included."""
    last = len(pictures) - 1
    chosen = [pictures[round(i * last / (_FRAMES - 1))] for i in range(_FRAMES)] if pictures else []
    frames = [
        {"step": int(re.sub(r"\D", "", path.stem) or 0), "image": _picture(path, 480, cut=True)}
        for path in dict.fromkeys(chosen)
    ]
    return [frame for frame in frames if frame["image"]]


def _picture(path: Path | None, width: int, cut: bool = False) -> str | None:
    """A picture as data URI, at most ``width`` pixels wide; None where it cannot be read.

    ``cut`` shows only the upper part of a very tall one, such as a grid of a hundred classes.
    """
    from PIL import Image

    if path is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as opened:
                picture = opened.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    size = picture.size
    if cut and picture.height > 4 * picture.width:
        picture = picture.crop((0, 0, picture.width, 3 * picture.width // 2))
    picture.thumbnail((width, 16_000), Image.Resampling.LANCZOS)
    content, kind = path.read_bytes(), "png"
    if picture.size != size or len(content) > 400_000:
        stream, kind = io.BytesIO(), "webp"
        picture.save(stream, format="WEBP", quality=85, method=2)
        content = stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _score(value: Any) -> str:
    if not isinstance(value, Mapping) or not isinstance(value.get("mean"), (int, float)):
        return "–"
    std = None if len(value.get("values") or ()) == 1 else value.get("std")
    return f"{value['mean']:.1f}" + (
        f" ±\N{NO-BREAK SPACE}{std:.1f}" if isinstance(std, (int, float)) else ""
    )


def _time(seconds: Any) -> str:
    """Seconds for people: "4 min 12 s"."""
    if not isinstance(seconds, (int, float)):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _number(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    return str(value)
