"""Networks: backbones, stems, position embeddings. Independent of data, losses and training."""
