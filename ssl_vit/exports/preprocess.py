"""Prepares images for an exported backbone: decoded, cropped and scaled as in evaluations."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ssl_vit.data.crops import CenterCrop
from ssl_vit.data.dataset import Canvases, canvas_bytes
from ssl_vit.data.decode import Picture, pixels_of
from ssl_vit.data.render import render
from ssl_vit.data.values import ValueRange
from ssl_vit.errors import UserError
from ssl_vit.files import path_of
from ssl_vit.objectives.pixels import PixelScale

ImageSource = Image.Image | Path | str


class Preprocess:
    """The `preprocess` of a loaded backbone.

    Args:
        size: (height, width) of the crop in pixels.
        pixel_mean, pixel_std: Per-channel mean and standard deviation of pixels in [0, 1].
        values: How values of more than 8 bits are shown; None: such images are rejected.
    """

    def __init__(
        self,
        size: tuple[int, int],
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
        values: ValueRange | None,
    ) -> None:
        self.size, self.values = size, values
        self._scale = PixelScale(pixel_mean, pixel_std)

    def __call__(
        self, images: ImageSource | Sequence[ImageSource], size: tuple[int, int] | int | None = None
    ) -> Tensor:
        """The center of each image, as `ssl-vit eval` crops it.

        Args:
            images: One or more paths or PIL images. Pillow rounds some images of more than 8 bits
                when it opens them, so pass those as paths.
            size: Side of the crop in pixels, or (height, width); None: the training size.

        Returns:
            (B, 3, H, W) float32 on the CPU.

        Raises:
            UserError: An image cannot be read or decoded; names it.
        """
        listed = [images] if isinstance(images, ImageSource) else list(images)
        size = (size, size) if isinstance(size, int) else size
        crop = CenterCrop(size or self.size)
        shape = [(1, crop.size)]
        memory = torch.empty(canvas_bytes(shape, len(listed)), dtype=torch.uint8)
        canvases = Canvases(shape, len(listed), memory)
        for place, image in enumerate(listed):
            try:
                picture = self._open(image)
                center = crop(picture.height, picture.width)
                render(picture, [center], canvases.of_image(place))
            except (OSError, ValueError) as error:
                name = f"image {place}" if isinstance(image, Image.Image) else str(image)
                raise UserError(
                    f"cannot read {name}: {error}", "leave the image out, or convert it to PNG"
                ) from None
        return self._scale(canvases.crops()[0][0])

    def _open(self, image: ImageSource) -> Picture:
        if isinstance(image, Image.Image):
            return Picture.of_pixels(pixels_of(image, self.values))
        return Picture(path_of(str(image)).read_bytes(), self.values)
