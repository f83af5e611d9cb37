"""The gateway: gRPC requests in, pictures out, with the neural networks behind an engine port."""
