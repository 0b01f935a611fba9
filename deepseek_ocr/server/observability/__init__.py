"""Logs as JSON and numbers for Prometheus."""
