"""Deadlines for calls to other servers, and limits on clients' connections."""
