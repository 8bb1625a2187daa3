"""Engines turn jobs into pictures; `base` says what each can do. Importing this loads no model library."""
