"""Images that share a matrix."""

import torch

from potstill.canvas import Canvas, canvas_spec
from potstill.canvas.mixed import MixedCanvas
from potstill.data import ZCA


def test_what_is_seen_and_stored_is_x_times_a(make_blobs):
    transform = ZCA.fit(make_blobs((30, 20), channels=3))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    base = Canvas(images, torch.tensor([0, 0, 1, 1]), 2, canvas_spec()).moved_behind(transform)
    canvas = MixedCanvas(base)
    assert torch.allclose(canvas.pictures(), images, atol=1e-4)  # A begins as the identity
    assert canvas.pixel_parameters() == [canvas.images] and canvas.plain
    assert set(canvas.parameters()) == {"images", "mixing"}
    with torch.no_grad():
        canvas.mixing += 0.1 * torch.rand(192, 192, generator=torch.Generator().manual_seed(1))
    mixed = torch.einsum("nd,de->ne", canvas.images.flatten(1), canvas.mixing).view(4, 3, 8, 8)
    for first, last, rows in ((0, None, slice(4)), (1, 2, slice(2, 4))):
        torch.testing.assert_close(canvas.seen(transform, first, last), mixed[rows])
        decoded, labels = canvas.decode(first, last)
        torch.testing.assert_close(decoded, transform.inverse(mixed[rows]))
        assert labels.tolist() == [0, 0, 1, 1][rows]
    torch.testing.assert_close(canvas.pictures(), transform.inverse(mixed).detach())
    kept = {name: leaf.detach() + 1 for name, leaf in canvas.parameters().items()}
    other = (kept["images"].flatten(1) @ kept["mixing"]).view(4, 3, 8, 8)
    torch.testing.assert_close(canvas.pictures(kept), transform.inverse(other))
    canvas.seen(transform).sum().backward()
    assert canvas.mixing.grad is not None and canvas.images.grad is not None
