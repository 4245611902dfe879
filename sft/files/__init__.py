"""Files and folders: complete or absent, within their roots, on a disk that may be full."""
