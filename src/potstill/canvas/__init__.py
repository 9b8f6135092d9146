"""How a synthetic image is parametrised: what is stored, what is optimised, what a network sees."""

from potstill.canvas.frequency import Frequency
from potstill.canvas.parts import CanvasSpec, MultiFormation, Pixels, Tiled
from potstill.canvas.pixels import Canvas, canvas_spec, check_spec, decode_images, views_per_image
from potstill.canvas.pyramid import Pyramid
from potstill.canvas.start import images_per_class, start_canvas
from potstill.canvas.tiled import mosaic, tiles

__all__ = [
    "Canvas",
    "CanvasSpec",
    "Frequency",
    "MultiFormation",
    "Pixels",
    "Pyramid",
    "Tiled",
    "canvas_spec",
    "check_spec",
    "decode_images",
    "images_per_class",
    "mosaic",
    "start_canvas",
    "tiles",
    "views_per_image",
]
