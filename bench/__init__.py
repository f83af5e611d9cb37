"""Measurements, one command a question: `bench.overhead`, `bench.png`, `bench.start`. Never part of a test."""
