"""What the HTML pages share: the template engine, figures and pictures inside the page, numbers."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.reports import table_text as tables
from potstill.reports.style import COLOURS

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["picture", "render", "svg"]


def render(template: str, **facts: Any) -> str:
    """Fill a template of this folder; everything but its own markup is escaped."""
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader
    from markupsafe import Markup

    here = Path(__file__).parent
    look: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "autoescape": True}
    environment = Environment(loader=FileSystemLoader(here), undefined=ChainableUndefined, **look)
    environment.filters |= {"score": _score, "size": tables.size, "time": _time, "number": _number}
    css = Markup((here / "page.css").read_text("utf-8"))
    return environment.get_template(template).render(css=css, **facts)


def svg(content: bytes, label: str) -> Markup:
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
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    head = f'<svg role="img" aria-label="{escape(label)}" style="--natural:{width}px"'
    return Markup(text.replace("<svg", head, 1))


def picture(path: Path | None, width: int, cut: bool = False) -> str | None:
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
