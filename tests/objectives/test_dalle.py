"""DALL-E's encoder against transformers', which has the same network in FLAVA."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssl_vit.errors import UserError
from ssl_vit.exports.dalle import describe_dalle, load_dalle
from ssl_vit.models.torchvision_ops import define_missing_ops
from ssl_vit.objectives.given import DalleConfig
from ssl_vit.objectives.pixels import PixelScale
from ssl_vit.objectives.tokenizer.dalle import DalleEncoder

define_missing_ops()  # transformers imports torchvision

SMALL = DalleConfig(width=50, hidden=8)


@pytest.mark.parametrize("names", ["released", "transformers"])
def test_the_codes_are_those_of_transformers(names: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.FlavaImageCodebookConfig(hidden_size=8, vocab_size=50)
    theirs = transformers.FlavaImageCodebook(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = theirs.state_dict()
    if names == "released":
        renamed = (
            (name.replace(".group.", ".").replace(".path.", "."), value)
            for name, value in state.items()
        )
        state = {
            name.replace(".weight", ".w").replace(".bias", ".b"): value for name, value in renamed
        }
    file = tmp_path / "dalle.safetensors"
    save_file(state, file)
    described = describe_dalle(file)
    assert described is not None
    assert described.backbone == SMALL
    assert described.codes is not None
    assert described.codes.num == 50
    ours = load_dalle(file, SMALL)
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    seen = PixelScale(described.pixel_mean, described.pixel_std)(images)
    torch.testing.assert_close(seen, 0.8 * images / 255 + 0.1)
    with torch.no_grad():
        expected = theirs.get_codebook_indices(seen)
        codes = ours(seen)
    assert codes.shape == (2, 4 * 6)
    assert torch.equal(codes, expected.flatten(1))


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "encoder.pkl"
    file.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="is not a safetensors file"):
        describe_dalle(file)


def test_other_weights_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, file)
    assert describe_dalle(file) is None
    state = DalleEncoder(SMALL).state_dict()
    del state["blocks.group_2.block_1.id_path.w"]
    save_file(state, file)
    with pytest.raises(UserError, match=r"blocks\.group_2\.block_1\.id_path\.w"):
        load_dalle(file, SMALL)
