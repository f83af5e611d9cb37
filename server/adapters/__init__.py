"""What a request puts on top of an engine: other weights, new words, pictures that guide."""
