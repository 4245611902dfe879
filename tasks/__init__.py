"""One file a step of a flow, each thin over a library."""
