"""Models of requests and responses that the service and its clients share. Needs only pydantic."""
