"""Processes and the loop that runs them."""
