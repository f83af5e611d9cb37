"""Reads files of weights that strangers made, and writes other weights under an engine's graph. Knows no requests."""
