"""Which device there is, how much memory it has, and what it cannot do.

- `selection`: which device, number type and attention to use
- `memory`: how much is free, and what running out of it looks like; `hugepages`: large pages
- `cpu`: instructions and threads; `nvidia`: drivers and cards; `ascend`: the plugin for NPUs
"""
