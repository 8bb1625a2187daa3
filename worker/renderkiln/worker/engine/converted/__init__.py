"""Converted models as the stages of diffusers' pipelines. Knows `predict` and the manifest, and no runtime."""
