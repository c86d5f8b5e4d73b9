"""Explanations of the text side."""
