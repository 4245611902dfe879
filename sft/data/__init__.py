"""Reads data files and turns their rows into token ids and labels."""
