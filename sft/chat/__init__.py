"""Chat templates: how a conversation becomes text."""
