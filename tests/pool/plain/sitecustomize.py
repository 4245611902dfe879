"""Imported by Python when it starts: a process of a host without namespaces has that host's name."""

import os
import socket

if name := os.environ.get("TUNEYARD_POOL_HOST"):
    socket.gethostname = lambda: name
