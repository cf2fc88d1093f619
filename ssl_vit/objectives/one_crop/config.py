"""Settings of objectives that use one crop per image, with some of its patches hidden."""

from abc import abstractmethod

from pydantic import Field, model_validator

from ssl_vit.models.config import BackboneConfig, Hides
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


class BlockMaskConfig(OneCropConfig):
    """A mask of rectangles of patches (Bao et al. 2021, arXiv 2106.08254)."""

    mask_ratio: float = Field(default=0.4, gt=0, lt=1)
    """Share of the patches that is hidden; the count is exact."""

    min_block_patches: int = Field(default=16, ge=1, le=16_384)
    """Patches in the smallest block (16 in BEiT's released configuration); where fewer are left,
    single patches are hidden.
    """

    @property
    def needs(self) -> Hides:
        """A mask token replaces hidden patches."""
        return "fill"

    def check(self, backbone: BackboneConfig) -> None:
        """See :class:`MethodConfig`; a block must fit into what is hidden."""
        super().check(backbone)
        if backbone.num_patches < 2:
            raise ValueError(
                f"backbone.image_size={backbone.image_size} is one patch, of which nothing can be "
                "hidden; raise backbone.image_size"
            )
        if self.min_block_patches > (count := self.num_hidden(backbone)):
            raise ValueError(
                f"objective.min_block_patches={self.min_block_patches} is more than the {count} of "
                f"{backbone.num_patches} patches that objective.mask_ratio={self.mask_ratio:.4g} "
                "hides; lower objective.min_block_patches or raise objective.mask_ratio"
            )


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
