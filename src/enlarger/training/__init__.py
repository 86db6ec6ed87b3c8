"""Making models: recipes, data, losses, the loop."""
