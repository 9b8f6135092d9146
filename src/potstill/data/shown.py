"""How sets look where they are printed: two lines of text, and a row of pictures in a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from torch import Tensor

__all__ = ["MOST_SHOWN", "html_of", "sizes"]

MOST_SHOWN = 12  # classes shown
_SIDE = 64  # pixels of a picture in a notebook


def sizes(counts: Sequence[int]) -> str:
    """Class sizes in a few words: "10 each", or "5000, 2997, ..., 25"."""
    if len(set(counts)) == 1:
        return f"{counts[0]} each"
    listed = [str(count) for count in counts]
    return ", ".join(listed if len(listed) <= MOST_SHOWN else [*listed[:6], "...", *listed[-3:]])


def html_of(text: str, pictures: Sequence[Tensor], names: Sequence[str]) -> str:
    """Return the two lines and below them a picture per class, for ``_repr_html_``.

    Args:
        text: what is printed. pictures: uint8 (c, h, w), the first of each class. names: classes.
    """
    shown = [
        f'<figure style="display:inline-block;margin:4px;text-align:center"><img width="{_SIDE}" '
        f'style="image-rendering:pixelated" alt="{html.escape(name)}" '
        f'src="data:image/png;base64,{_png(picture)}"><figcaption>{html.escape(name)}</figcaption>'
        "</figure>"
        for picture, name in zip(pictures[:MOST_SHOWN], names, strict=False)
    ]
    more = f"<p>and {len(names) - MOST_SHOWN} more classes</p>" if len(names) > MOST_SHOWN else ""
    return f"<pre>{html.escape(text)}</pre><div>{''.join(shown)}</div>{more}"


def _png(picture: Tensor) -> str:
    from PIL import Image

    pixels = picture.cpu().permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")
