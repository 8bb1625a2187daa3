"""Tests of compression: palettes, recipes, measurements, and the commands."""
