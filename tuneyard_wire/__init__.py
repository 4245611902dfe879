"""What the service and its clients say to each other, as both read and write it. Needs pydantic alone."""
