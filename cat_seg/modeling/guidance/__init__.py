"""Image guidance from a backbone of its own: Swin Transformer, ResNet."""
