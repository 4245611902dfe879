"""The documented import paths below `app.api`."""
