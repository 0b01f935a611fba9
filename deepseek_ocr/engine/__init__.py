"""One page or many through one network: requests, slots, results."""
