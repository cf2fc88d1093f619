"""The encoder of DALL-E's discrete VAE as a file that the user brings, for BEiT.

It is released as a pickle, which this package does not open, because opening one runs code that is
in it. The README says how to convert it, in an environment of its own.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ssl_vit.errors import UserError
from ssl_vit.files import hash_file, spelled_in_utf8
from ssl_vit.foreign import first_line
from ssl_vit.objectives.given import Codes, DalleConfig, GivenNetwork

if TYPE_CHECKING:
    from ssl_vit.objectives.tokenizer.dalle import DalleEncoder

_INPUT, _OUTPUT = "blocks.input.w", "blocks.output.conv.w"
# Names in transformers' FLAVA, which has the same network → the released ones.
_NAMES = ((r"\.(group|path)\.", "."), (r"\.weight$", ".w"), (r"\.bias$", ".b"))


def describe_dalle(path: Path) -> GivenNetwork | None:
    """The description of an encoder; None if the file is something else. Does not import torch.

    Raises:
        UserError: It is a pickle.
    """
    if not path.is_file():
        return None
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a safetensors file",
            "convert a pickled DALL-E encoder first, as the README says (section BEiT)",
        )
    try:
        with spelled_in_utf8(path) as place, safe_open(place, framework="numpy") as file:
            names = {_renamed(name): name for name in file.keys()}  # noqa: SIM118 - not a dict
            if _INPUT not in names or _OUTPUT not in names:
                return None
            hidden = file.get_slice(names[_INPUT]).get_shape()[0]
            num_codes = file.get_slice(names[_OUTPUT]).get_shape()[0]
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}", "convert it again") from None
    return GivenNetwork(
        sha256=hash_file(path),
        backbone=DalleConfig(width=num_codes, hidden=hidden),
        # Pixels in [0, 1] become 0.1 + 0.8 x, as in the released code.
        pixel_mean=(-0.125, -0.125, -0.125),
        pixel_std=(1.25, 1.25, 1.25),
        codes=Codes(num=num_codes, dim=num_codes, is_projected=False),
    )


def load_dalle(path: Path, config: DalleConfig) -> "DalleEncoder":
    """The encoder, in evaluation mode on the CPU.

    Raises:
        UserError: The file has other tensors; names the first few.
    """
    from safetensors.torch import load_file

    from ssl_vit.exports.loading import check_state
    from ssl_vit.objectives.tokenizer.dalle import DalleEncoder

    model = DalleEncoder(config)
    with spelled_in_utf8(path) as place:
        state = {_renamed(name): value.float() for name, value in load_file(place).items()}
    try:
        check_state(state, {name: tensor.shape for name, tensor in model.state_dict().items()})
    except RuntimeError as error:
        raise UserError(
            f"{path} is not the encoder of DALL-E: {first_line(error)}", "convert it again"
        ) from None
    model.load_state_dict(state)
    return model.eval()


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name
