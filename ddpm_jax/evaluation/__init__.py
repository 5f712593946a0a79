"""Looking at and measuring images."""
