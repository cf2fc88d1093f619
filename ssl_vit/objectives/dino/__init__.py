"""Self-distillation: DINO, iBOT, DINOv2."""
