"""The command `tuneyard`: jobs of a service over HTTP. The full package adds the commands of the service itself."""
