"""Real image-text sets from package registries, and loaders for the SCAN family's folders."""
