"""What a run costs: parameters, operations, memory, hours, and `ssl-vit plan` that prints them."""
