"""Cures one trap: PyPI's torchvision is a CUDA build, and on a CPU-only torch importing it (so
importing timm) dies.

torchvision registers the fake implementations of two operators whose schemas its missing C++
library would have defined ("operator torchvision::nms does not exist"). Defining the schemas first
lets the import through; the operators themselves, which we never call, stay unavailable. Call
before the first `import timm`.
"""

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None


def define_missing_ops() -> None:
    """Make `import torchvision` possible where its compiled operators do not load. Harmless
    elsewhere.
    """
    global _library
    if _library is not None or _compiled_ops_load():
        return
    _library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        _library.define(name + schema)


def _compiled_ops_load() -> bool:
    """Try torchvision's own library the way torchvision does, without importing the package."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to cure; importing timm will say what is missing
    libraries = list(Path(spec.origin).parent.glob("_C*.so")) + list(
        Path(spec.origin).parent.glob("_C*.pyd")
    )
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)
