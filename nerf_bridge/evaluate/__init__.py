"""Measuring: what the prior, the assets and the methods of guidance are worth beside the true shapes."""
