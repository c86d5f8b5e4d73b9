"""Kinds and a command for phrasebox."""
