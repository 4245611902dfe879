"""The jobs as the API and the Python interface use them."""
