"""The documented home of the uvicorn door."""
