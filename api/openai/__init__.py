"""OpenAI's interface, below `/v1`: requests, responses and errors in the shapes of its clients."""
