"""Pre-train Vision Transformers on your own images, without labels.

Most programs need only ``ssl_vit.load_backbone(path)``. It is imported on first use, so that
``import ssl_vit`` (and with it every command's ``--help``) loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_vit.exports.loading import load_backbone as load_backbone

__version__ = "0.1.0"
__all__ = ["__version__", "load_backbone"]


def __getattr__(name: str) -> Any:
    if name == "load_backbone":
        from ssl_vit.exports.loading import load_backbone

        return load_backbone
    raise AttributeError(f"module 'ssl_vit' has no attribute '{name}'")
