"""A run over many pictures: which ones, what is done already, and how each one ended. It starts in `run.py`."""
