"""Makes converted models smaller: weights become indices into small palettes, at one width or at a width per layer.

Nothing is imported here: `palettize` and `sensitivity` need torch and coremltools, `recipe` and `planner` do not.
"""
