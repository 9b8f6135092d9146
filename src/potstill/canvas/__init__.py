"""How a synthetic image is parametrised: what is stored, what is optimised, what a network sees."""

from potstill.canvas.frequency import Frequency, FrequencyCanvas
from potstill.canvas.parts import CanvasSpec, MultiFormation, Pixels, Tiled
from potstill.canvas.pixels import Canvas, canvas_spec, check_spec, decode_images, views_per_image
from potstill.canvas.pyramid import Pyramid, PyramidCanvas
from potstill.canvas.start import check_start, images_per_class, start_canvas
from potstill.canvas.tiled import mosaic, tiles, views

__all__ = [
    "Canvas",
    "CanvasSpec",
    "Frequency",
    "FrequencyCanvas",
    "MultiFormation",
    "Pixels",
    "Pyramid",
    "PyramidCanvas",
    "Tiled",
    "canvas_spec",
    "check_spec",
    "check_start",
    "decode_images",
    "images_per_class",
    "mosaic",
    "start_canvas",
    "tiles",
    "views",
    "views_per_image",
]
