"""Core AI, Apple's successor to Core ML: on macOS 27 on all units, elsewhere its Python package's interpreter."""
