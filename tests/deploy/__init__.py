"""Files of `deploy/` and the image."""
