"""The default checkpoints: drawn scenes with captions, and the training that makes small real models of them."""
