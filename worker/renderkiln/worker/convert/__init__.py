"""Converts Stable Diffusion models to Core ML, checks what came out, and makes it smaller."""
