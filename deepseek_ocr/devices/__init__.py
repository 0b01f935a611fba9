"""Which device there is, how much memory it has, and what it cannot do."""
