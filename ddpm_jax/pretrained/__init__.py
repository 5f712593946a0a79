"""Networks with weights that others trained, and the readers of the files that hold them."""
