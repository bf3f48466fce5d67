"""Building templates: steps run in hidden sandboxes, each kept as a layer that the next build finds again."""
