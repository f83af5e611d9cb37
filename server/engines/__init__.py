"""Where the networks run: one port (`port.py`), several homes for it (Triton, in-process)."""
