"""What a network is: backbone, stems, positions, pooling. Knows no data, no loss, no loop."""
