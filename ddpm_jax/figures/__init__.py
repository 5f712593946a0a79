"""Figures: grids of images, and plots."""
