"""Workaround: PyPI's torchvision is a CUDA build, and importing it (hence importing timm) with a
CPU-only torch fails.

torchvision registers fake implementations of two operators whose schemas its C++ library defines;
where that library does not load, this fails ("operator torchvision::nms does not exist"). Defining
the schemas first lets the import succeed; the operators themselves, which we never call, stay
unavailable. Call before the first `import timm`.
"""

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None


def define_missing_ops() -> None:
    """Make `import torchvision` work where its compiled operators do not load. Harmless
    elsewhere.
    """
    global _library
    if _library is not None or _compiled_ops_load():
        return
    _library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        _library.define(name + schema)


def _compiled_ops_load() -> bool:
    """Whether torchvision's own library loads; tried as torchvision does, without importing it."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # importing timm will report what is missing
    folder = Path(spec.origin).parent
    libraries = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)
