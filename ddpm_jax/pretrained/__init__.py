"""Pretrained networks (a text encoder, Inception), and readers of the files with their weights."""
