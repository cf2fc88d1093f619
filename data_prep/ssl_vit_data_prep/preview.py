"""A picture of an objective's input: each image with its crops marked, then every view."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ssl_vit.data.crops import Box, Crop
from ssl_vit.data.dataset import Canvases, canvas_bytes
from ssl_vit.data.decode import Picture
from ssl_vit.data.order import Order, SampleRandomness, SampleRef
from ssl_vit.data.render import render
from ssl_vit.data.shards import ShardSet
from ssl_vit.data.views import Views
from ssl_vit.errors import UserError
from ssl_vit.files import replacing
from ssl_vit.objectives.build import build_views
from ssl_vit.run.config import RunConfig

_HEIGHT, _GAP = 160, 8
_GROUND = "#bfc7d5"  # distinct from the white of paper and the black of a masked patch
_COLORS = ("#ff2d2d", "#2d9bff", "#ffd12d", "#3ddc55", "#d32dff")


def write_preview(
    path: Path, shards: ShardSet, order: Order, config: RunConfig, num_images: int
) -> list[SampleRef]:
    """Write a PNG with a row for each of the first samples of a run.

    Args:
        path: The PNG to write.
        order: The run's order.
        config: The run's config.
        num_images: Number of rows.

    Returns:
        The samples, in the order of the rows.

    Raises:
        UserError: A shard cannot be read.
        ValueError: An image is damaged.
    """
    views = build_views(config.objective, config.backbone)
    lanes = range(config.data.lanes)
    refs: list[SampleRef] = []
    step = 0
    while len(refs) < num_images:
        refs += order.update(step, lanes)
        step += 1
    refs = refs[:num_images]
    rows, rng = [], SampleRandomness(config.seed)
    for ref in refs:
        try:
            rows.append(
                _make_row(Picture(shards.read(ref.number), config.data.values), views, rng.of(ref))
            )
        except UserError:
            raise
        except ValueError as error:
            # Training replaces it; the preview should name it.
            place = f"{shards.key(ref.number)} in {shards.location_of(ref.number)}"
            raise ValueError(f"{place}: {error}") from None
    with replacing(path) as partial:
        _stack(rows).save(partial, "PNG")
    return refs


def _make_row(picture: Picture, views: Views, rng: np.random.Generator) -> list[Image.Image]:
    draw = views.draw(picture.height, picture.width, rng)
    memory = torch.empty(canvas_bytes(views.crop_sizes, 1), dtype=torch.uint8)
    canvases = Canvases(views.crop_sizes, 1, memory)
    render(picture, draw.crops, canvases.of_image(0))
    shown = views.show([crops[:, 0] for crops in canvases.crops()], draw)
    tiles = [_with_boxes(picture, draw.crops)]
    tiles += [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in shown]
    return [_to_height(tile) for tile in tiles]


def _with_boxes(picture: Picture, crops: Sequence[Crop]) -> Image.Image:
    image = _to_height(Image.fromarray(np.ascontiguousarray(picture.pixels())))
    scale = image.height / picture.height
    draw = ImageDraw.Draw(image)
    for number, crop in enumerate(crops):
        draw.rectangle(_corners(crop.box, scale), outline=_COLORS[number % len(_COLORS)], width=2)
    return image


def _corners(box: Box, scale: float) -> tuple[float, float, float, float]:
    right, bottom = (box.left + box.width) * scale - 1, (box.top + box.height) * scale - 1
    return (box.left * scale, box.top * scale, right, bottom)


def _to_height(image: Image.Image) -> Image.Image:
    width = max(1, round(image.width * _HEIGHT / image.height))
    # Small crops enlarged without smoothing, so that patches keep their edges.
    enlarges = image.height < _HEIGHT
    how = Image.Resampling.NEAREST if enlarges else Image.Resampling.BICUBIC
    return image.resize((width, _HEIGHT), how)


def _stack(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    # Columns: every tile of one kind begins at the same place.
    widths = [max(tile.width for tile in column) for column in zip(*rows, strict=True)]
    width = sum(widths) + _GAP * (len(widths) + 1)
    sheet = Image.new("RGB", (width, len(rows) * (_HEIGHT + _GAP) + _GAP), _GROUND)
    for number, row in enumerate(rows):
        left = _GAP
        for tile, column_width in zip(row, widths, strict=True):
            sheet.paste(tile, (left, _GAP + number * (_HEIGHT + _GAP)))
            left += column_width + _GAP
    return sheet
