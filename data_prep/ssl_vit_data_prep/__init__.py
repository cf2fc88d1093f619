"""From a folder of images to WebDataset shards, and the check that a set of shards is whole."""
