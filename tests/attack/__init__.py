"""`make attack`: clients, receivers, files and a registry that mean harm, against a service of its own."""
