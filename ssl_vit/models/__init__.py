"""What a network is: backbone, stems, positions. Knows no data, no loss, no loop."""
