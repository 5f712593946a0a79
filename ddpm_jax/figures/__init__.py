"""Pictures: grids of images, and plots."""
