"""Sizes at which one crop is made into pixels. No torch here."""

from ssl_vit.models.config import BackboneConfig


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
