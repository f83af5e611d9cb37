"""What a prompt's text says besides words: weights in brackets, and styles. Knows nothing of tokens or engines."""
