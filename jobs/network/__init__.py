"""Calls of other servers with deadlines, and connections of clients with limits."""
