"""The mesh exporter: density -> triangles -> clean -> UV -> baked texture -> GLB."""
