"""What a network is: backbones, stems, positions. Knows no data, no loss, no loop."""
