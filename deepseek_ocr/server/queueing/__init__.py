"""Pages on their way to an engine: the queue, the engines behind it, the events that come."""
