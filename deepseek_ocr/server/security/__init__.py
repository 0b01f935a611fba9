"""Keys, bounded heads of requests, and the one gate to addresses that clients name."""
