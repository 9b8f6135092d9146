"""How a synthetic image is parametrised: what is stored, what is optimised, what a network sees."""

from potstill.canvas.frequency import Frequency
from potstill.canvas.parts import CanvasSpec, MultiFormation, Pixels, Subsampled, Tiled
from potstill.canvas.pixels import (
    Canvas,
    canvas_spec,
    check_spec,
    decode_images,
    for_people,
    tiles_per_image,
    views_per_image,
)
from potstill.canvas.pyramid import Pyramid
from potstill.canvas.start import images_per_class, start_canvas
from potstill.canvas.subsampled import subsampled_fault
from potstill.canvas.tiled import mosaic, tiles

__all__ = [
    "Canvas",
    "CanvasSpec",
    "Frequency",
    "MultiFormation",
    "Pixels",
    "Pyramid",
    "Subsampled",
    "Tiled",
    "canvas_spec",
    "check_spec",
    "decode_images",
    "for_people",
    "images_per_class",
    "mosaic",
    "start_canvas",
    "subsampled_fault",
    "tiles",
    "tiles_per_image",
    "views_per_image",
]
