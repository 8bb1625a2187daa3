"""Makes converted models smaller: weights become indices into small palettes, at one width or at a width per layer.

Nothing is imported here: `palettize.palettize` needs coremltools, `recipe`, `layers` and `planner` do not.
"""
