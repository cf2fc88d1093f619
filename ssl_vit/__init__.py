"""Pre-train Vision Transformers on your own images, without labels.

Most programs need only ``ssl_vit.load_backbone(path)``, or ``ssl_vit.load_classifier(path)`` after
fine-tuning. They are imported on first use, so that ``import ssl_vit`` (and with it every command's
``--help``) loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_vit.exports.loading import load_backbone as load_backbone
    from ssl_vit.exports.loading import load_classifier as load_classifier

__version__ = "0.1.0"
__all__ = ["__version__", "load_backbone", "load_classifier"]


def __getattr__(name: str) -> Any:
    if name in ("load_backbone", "load_classifier"):
        from ssl_vit.exports import loading

        return {
            "load_backbone": loading.load_backbone,
            "load_classifier": loading.load_classifier,
        }[name]
    raise AttributeError(f"module 'ssl_vit' has no attribute '{name}'")
