"""JSON over HTTP in front of the same servicer: bodies to messages, replies to JSON. No logic of its own."""
