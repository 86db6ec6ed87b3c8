"""The tiled autoencoder: see `Autoencoder`."""

from enlarger.canvas.autoencoder.autoencoder import Autoencoder, Decoded, Encoded
from enlarger.canvas.autoencoder.maps import Map
from enlarger.canvas.autoencoder.plan import Plan

__all__ = ["Autoencoder", "Decoded", "Encoded", "Map", "Plan"]
