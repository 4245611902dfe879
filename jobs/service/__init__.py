"""The job service, which the API and the Python interface use."""
