"""Drawn pages with exact annotations."""
