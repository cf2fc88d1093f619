"""timm's augmentations of an image for training with labels, as a function of a key.

timm draws from Python's, numpy's and torch's global generators; they are seeded for each image and
put back, so that nothing depends on which process makes an image, or when.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from ssl_vit.models.torchvision_ops import define_missing_ops

# DeiT III's three augmentations, and the color jitter beside them (Touvron et al. 2022, arXiv
# 2204.07118, section 3).
_THREE, _THREE_JITTER = "3a", 0.3
# What RandAugment's shifts leave free, and the mean of random erasing's noise.
_GRAY = 128
# As timm's own training: the largest shift as a share of the shorter side.
_SHIFT = 0.45
# Standard deviation of the noise, in pixel values: about that of natural images.
_NOISE = 58.0


class Augment:
    """RandAugment or DeiT III's three augmentations, then random erasing.

    Args:
        policy: In timm's notation, such as ``rand-m9-mstd0.5-inc1``; ``3a``; or empty for none.
        erasing: Probability that a rectangle becomes noise.
        size: (height, width) of the images in pixels.
    """

    def __init__(self, policy: str, erasing: float, size: tuple[int, int]) -> None:
        self.policy, self.erasing, self.size = policy, erasing, size

    def __call__(self, image: Tensor, key: int) -> None:
        """Augment (3, H, W) uint8 pixels in place.

        Args:
            image: The pixels.
            key: Seed, from 0 to 2³² − 1; the same key gives the same result.
        """
        if not self.policy and not self.erasing:
            return
        with _seeded(key):
            if self.policy:
                pixels = image.permute(1, 2, 0).contiguous().numpy()
                changed = np.array(self._transform(Image.fromarray(pixels)))
                image.copy_(torch.from_numpy(changed).permute(2, 0, 1))
            if self.erasing:
                self._erase(image)

    def _erase(self, image: Tensor) -> None:
        # On numbers that noise does not reach, so that what is erased can be told apart.
        kept = torch.full(image.shape, float("inf"))
        noise = self._eraser(kept)
        pixels = (noise * _NOISE + _GRAY).round().clamp(0, 255).to(torch.uint8)
        image.copy_(torch.where(noise.isinf(), image, pixels))

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Image.Image]:
        define_missing_ops()
        from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

        settings: dict[str, Any] = {
            "translate_const": int(min(self.size) * _SHIFT),
            "img_mean": (_GRAY,) * 3,
            "interpolation": Image.Resampling.BICUBIC,
        }
        if self.policy == _THREE:
            three = auto_augment_transform(_THREE, settings)
            return lambda picture: _color_jitter(three(picture))
        chosen = rand_augment_transform(self.policy, settings)
        for operation in chosen.ops:
            if operation.name.startswith("Posterize"):
                operation.level_fn = _with_a_bit(operation.level_fn)
        return chosen

    @cached_property
    def _eraser(self) -> Callable[[Tensor], Tensor]:
        define_missing_ops()
        from timm.data.random_erasing import RandomErasing

        return RandomErasing(self.erasing, mode="pixel", device="cpu")

    def __getstate__(self) -> dict[str, Any]:
        """Without timm's objects, which each process makes for itself."""
        return {"policy": self.policy, "erasing": self.erasing, "size": self.size}


def _with_a_bit(bits_of: Callable[..., tuple[int]]) -> Callable[..., tuple[int]]:
    """At some levels timm keeps no bit of each pixel: a black image, which Pillow 13
    refuses. One bit is kept.
    """
    return lambda level, settings: (max(1, bits_of(level, settings)[0]),)


def _color_jitter(picture: Image.Image) -> Image.Image:
    """Change brightness, contrast and saturation in random order."""
    kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    random.shuffle(kinds)
    for kind in kinds:
        picture = kind(picture).enhance(random.uniform(1 - _THREE_JITTER, 1 + _THREE_JITTER))
    return picture


@contextmanager
def _seeded(key: int) -> Iterator[None]:
    """A context in which all global generators of a CPU begin at a key."""
    before, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(key)
        np.random.seed(key)
        torch.manual_seed(key)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numbers)
