"""The service's responses, as the service writes them and its clients read them. Needs pydantic alone."""
