"""The cost of a run: parameters, operations, memory, hours, and `ssl-vit plan`, which prints it."""
