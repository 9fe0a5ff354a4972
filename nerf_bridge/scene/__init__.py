"""What is looked at, and from where: cameras, rays, the hash-grid field, its occupancy, background and light."""
