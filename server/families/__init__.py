"""One file an engine family; a checkpoint of a family is a card (`card.py`), which is data."""
