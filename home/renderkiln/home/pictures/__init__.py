"""Picture files: their names, the settings inside them, contact sheets, and the pictures that people hand in.

Import from the modules; this package imports none of them, so that a name can be had without Pillow.

- `naming`: what a picture's file is called.
- `metadata`, `infotext`: the settings inside a picture, as our JSON and as AUTOMATIC1111's `parameters` text.
- `encode`, `read`: pixels and settings to the bytes of a file, and back to the settings.
- `inputs`: init images and masks, checked before they are queued and again before they are used.
- `sheet`: contact sheets.
"""
