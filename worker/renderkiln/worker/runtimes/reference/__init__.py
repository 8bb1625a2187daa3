"""Evaluates the ML program of a `.mlpackage` with torch, on any system."""

from .runtime import ReferenceRuntime

__all__ = ["ReferenceRuntime"]
