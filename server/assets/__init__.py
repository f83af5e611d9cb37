"""The asset library: weights that callers bring, and who may use them."""
