"""Settings of objectives that use one crop per image, with some of its patches hidden."""

from abc import abstractmethod

from pydantic import Field, model_validator

from ssl_vit.models.config import BackboneConfig
from ssl_vit.objectives.method import MethodConfig


class OneCropConfig(MethodConfig):
    """One random crop with flips and a mask of an exact count."""

    min_crop_area: float = Field(default=0.2, gt=0, le=1)
    """Smallest crop area as a share of the image; RandomResizedCrop (0.2, 1) in appendix A.1."""

    max_crop_area: float = Field(default=1.0, gt=0, le=1)
    """Largest crop area as a share of the image."""

    horizontal_flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right flip."""

    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of an up-down flip; 0.5 suits images without a fixed orientation (microscopy,
    satellites).
    """

    @model_validator(mode="after")
    def _areas_in_order(self) -> "OneCropConfig":
        if self.min_crop_area > self.max_crop_area:
            raise ValueError(
                f"objective.min_crop_area={self.min_crop_area} is larger than "
                f"objective.max_crop_area={self.max_crop_area}; swap them"
            )
        return self

    @abstractmethod
    def num_hidden(self, backbone: BackboneConfig) -> int:
        """M, the number of hidden patches in every crop."""

    def crops(self, backbone: BackboneConfig) -> tuple[tuple[int, tuple[int, int]], ...]:
        """One view of the size of the backbone's training crop."""
        return ((1, backbone.height_width),)


def num_hidden_patches(num_patches: int, mask_ratio: float) -> int:
    """M; at least one patch is hidden and one is visible. As in the paper's code, the number of
    visible ones is rounded down.
    """
    # 100 × (1 − 0.8) is 19.999…96 in binary: without the small push, 81 patches would be hidden.
    visible = int(num_patches * (1 - mask_ratio) + 1e-9)
    return min(max(num_patches - visible, 1), num_patches - 1)


def paired_crops(
    backbone: BackboneConfig, given: BackboneConfig | None
) -> tuple[tuple[int, tuple[int, int]], ...]:
    """(number of views, (height, width) in pixels): the backbone's crop, and that at which a given
    network has the same grid, if it differs.
    """
    own = (1, backbone.height_width)
    if given is None or given.stride == backbone.stride:
        return (own,)
    down, across = backbone.grid
    return (own, (1, (down * given.stride, across * given.stride)))
