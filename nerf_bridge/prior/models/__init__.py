"""Priors that diffusers' file format brings: Stable Diffusion, SDXL, DeepFloyd IF, SD3, FLUX, MVDream."""
