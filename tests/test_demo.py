"""The demo's own parts; the commands it runs have tests of their own."""

import zlib
from pathlib import Path

from ssl_vit.demo import lay_out_images, summary_rows


def test_images_land_in_their_part_and_class(tmp_path: Path):
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    lines = []
    for number, (probability, kind) in enumerate([(0.0, "mono"), (1.0, "poly"), (2 / 3, "mono")]):
        name = f"images/cell{number:04d}.png"
        (source / name).write_bytes(bytes([number]))
        lines.append(f"{name}  {probability}  {kind}")
    (source / "labels.csv").write_text("\n".join(lines) + "\n")
    lay_out_images(source, tmp_path / "images")
    found = {path.name: path for path in (tmp_path / "images").rglob("*.png")}
    assert {path.parent.name for path in found.values()} == {
        "mono_functional",
        "poly_defective",
        "mono_defective",
    }
    for name, path in found.items():
        is_val = zlib.crc32(name.encode()) % 4 == 0
        assert path.parent.parent.name == ("val" if is_val else "train")
    assert found["cell0001.png"].read_bytes() == b"\x01"


def test_the_closing_table_has_a_row_for_every_comparison():
    knn = {"rows": {"pre-trained": {"accuracy": 0.75}, "raw pixels": {"accuracy": 0.7}}}
    linear = {"rows": {"pre-trained": {"accuracy": 0.8}, "raw pixels": {"accuracy": 0.61}}}
    assert summary_rows([knn, linear]) == [
        ("pre-trained", "75.0", "80.0"),
        ("raw pixels", "70.0", "61.0"),
    ]
