"""HOG against scikit-image's and against a loop over pixels in float64.

scikit-image's definitions are ours: differences of the two neighbors, 0 at the border; one vote per
pixel for the orientation that its gradient falls into, without interpolation between orientations
or cells; with one cell per block, each histogram is normalized by itself. Three things differ, and
are told to it or follow from it: of several channels it takes the steepest, so it gets one at a
time; it divides by √(|h|² + 10⁻¹⁰), so it gets pixels of 0 to 255, of which the smallest step is
far above that; and an angle that rounds to 180 degrees it counts nowhere, which whole numbers do
not have.
"""

import math

import numpy as np
import pytest
import torch
from skimage.feature import hog as skimage_hog
from torch import Tensor

from ssl_vit.objectives.hog import cell_histograms, hog, hog_glyphs, hog_size
from ssl_vit.objectives.pixels import PixelScale


def pixels(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Random pixels, smooth in one half and with flat areas, so that every case occurs."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, height, width))
    images[:, :, :, width // 2 :] //= 64
    images[:, 0, : height // 2, : width // 2] = 7
    return torch.from_numpy(images.astype(np.float32))


def by_hand(image: np.ndarray, cell: int) -> np.ndarray:
    """(H / cell, W / cell, 9) of one channel, pixel by pixel, normalized."""
    height, width = image.shape
    found = np.zeros((height // cell, width // cell, 9))
    for row in range(height):
        for column in range(width):
            across = down = 0.0
            if 0 < column < width - 1:
                across = image[row, column + 1] - image[row, column - 1]
            if 0 < row < height - 1:
                down = image[row + 1, column] - image[row - 1, column]
            degrees = math.degrees(math.atan2(down, across)) % 180
            number = int(degrees / 20) % 9
            found[row // cell, column // cell, number] += math.hypot(across, down)
    norms = np.sqrt((found**2).sum(axis=2, keepdims=True))
    return found / np.where(norms > 0, norms, 1)


def in_patch(cells: np.ndarray, patch: tuple[int, int], channel: int, features: Tensor) -> None:
    """Compare the four cells of one patch."""
    down, across = patch
    expected = cells[2 * down : 2 * down + 2, 2 * across : 2 * across + 2]
    found = features.view(2, 2, 3, 9)[:, :, channel]
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("patch_size", "height", "width"), [(16, 48, 64), (12, 36, 24), (6, 6, 12)]
)
def test_it_is_that_of_scikit_image(patch_size: int, height: int, width: int):
    images, cell = pixels(2, height, width), patch_size // 2
    found = hog(images, patch_size)
    grid = (height // patch_size, width // patch_size)
    assert found.shape == (2, grid[0] * grid[1], hog_size(3))
    for image in range(2):
        for channel in range(3):
            cells = skimage_hog(
                images[image, channel].double().numpy(),
                orientations=9,
                pixels_per_cell=(cell, cell),
                cells_per_block=(1, 1),
                block_norm="L2",
                feature_vector=False,
            ).squeeze((2, 3))
            for number in range(grid[0] * grid[1]):
                place = divmod(number, grid[1])
                in_patch(cells, place, channel, found[image, number])


@pytest.mark.parametrize("patch_size", [2, 4, 6])
def test_it_is_that_of_a_loop_over_pixels(patch_size: int):
    images = pixels(1, 12, 24, seed=1)
    found = hog(images, patch_size)
    for channel in range(3):
        cells = by_hand(images[0, channel].double().numpy(), patch_size // 2)
        for number in range(found.shape[1]):
            in_patch(cells, divmod(number, 24 // patch_size), channel, found[0, number])


def test_a_patch_of_sixteen_pixels_has_108_numbers_as_in_the_paper():
    assert hog(pixels(1, 32, 32), 16).shape == (1, 4, 108)
    assert hog_size(3) == 108


@pytest.mark.parametrize("degrees", range(10, 180, 20))
def test_a_ramp_votes_for_its_direction_and_so_does_its_opposite(degrees: int):
    """A plane that rises at this angle from left-to-right toward downward."""
    places = torch.arange(24.0)
    down, across = torch.meshgrid(places, places, indexing="ij")
    angle = math.radians(degrees)
    ramp = (across * math.cos(angle) + down * math.sin(angle))[None, None]
    # The border has no differences, and so other directions.
    cell = cell_histograms(ramp, 8)[0, 0, :, 1, 1]
    assert cell.argmax() == degrees // 20
    assert cell.sum() == pytest.approx(2.0)
    torch.testing.assert_close(cell_histograms(-ramp, 8)[0, 0, :, 1, 1], cell)


def test_horizontal_gradients_vote_for_the_first_orientation_either_way():
    """0 and 180 degrees are the same; rounding must not put the second into the last bin."""
    rising = torch.arange(8.0).expand(1, 1, 8, 8)
    for images in (rising, -rising, rising * 1e-3, -rising * 255):
        assert cell_histograms(images, 8)[0, 0].argmax() == 0
        assert (cell_histograms(images, 8)[0, 0, 1:] == 0).all()


def test_contrast_and_brightness_do_not_matter():
    """So that of normalized images is that of pixels."""
    images = pixels(2, 32, 32).round()
    scale = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(hog(scale(images), 8), hog(images, 8), rtol=0, atol=1e-5)
    torch.testing.assert_close(hog(images * 0.01 + 3, 8), hog(images, 8), rtol=0, atol=1e-4)


def test_a_constant_image_has_none():
    assert (hog(torch.full((1, 3, 16, 16), 0.3), 8) == 0).all()


def test_a_cell_has_norm_one():
    cells = hog(pixels(1, 32, 32, seed=2), 8).view(-1, 9)
    norms = cells.norm(dim=1)
    assert (((norms - 1).abs() < 1e-5) | (norms == 0)).all()
    assert (norms == 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype):
    images = pixels(1, 32, 32).requires_grad_()
    expected = hog(images, 8)
    with torch.autocast("cpu", dtype=dtype):
        found = hog(images, 8)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, expected)


@pytest.mark.parametrize("is_upright", [True, False])
def test_a_line_runs_along_the_edge(is_upright: bool):
    """Left and right halves: the gradient points across, and the line down."""
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 1
    picture = hog_glyphs(hog(images if is_upright else images.mT, 8), 8).view(16, 16)
    assert 0 <= picture.min() < picture.max() <= 1
    cell = picture[:8, :8]  # 4 × 4 pixels of the image, at twice their size
    along, over = cell.sum(dim=0).max(), cell.sum(dim=1).max()
    assert (along > 2 * over) if is_upright else (over > 2 * along)
