"""Runs converted models on Core ML itself, on macOS, and keeps what Core ML compiles of them.

Imports nothing: the cache's commands work where there is neither numpy nor coremltools.
"""
