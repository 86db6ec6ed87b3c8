"""Our own networks, plain torch modules."""
