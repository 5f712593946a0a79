"""Scenes: pinhole cameras, and simple solids that are rendered from any side."""
