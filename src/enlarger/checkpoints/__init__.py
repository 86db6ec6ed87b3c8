"""Opening and checking model files."""
