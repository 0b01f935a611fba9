"""Keys, origins, bounds of requests, and the addresses a server may fetch."""
