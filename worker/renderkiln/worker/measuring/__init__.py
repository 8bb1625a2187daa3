"""Measures what this machine makes of a model: `renderkiln tune` and `renderkiln bench model`."""
