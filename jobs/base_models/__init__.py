"""Base models of one's own: listed, added, uploaded and removed below the model root."""
