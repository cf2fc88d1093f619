"""How samples come: shards, their order, decoding, augmentation, loading. Knows no network."""
