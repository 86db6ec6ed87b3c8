"""Geometry, tiles, blending, noise: where things lie on a picture."""
