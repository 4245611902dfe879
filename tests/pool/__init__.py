"""A pool of hosts that share nothing, and what becomes of jobs while hosts, network and store are lost."""
