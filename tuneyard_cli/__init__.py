"""The command `tuneyard`: use a service over HTTP. The full package adds commands that run the service."""
