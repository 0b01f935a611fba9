"""The one place that fetches addresses, for servers started with `--allow-urls`.

A name is resolved once, every address it has is checked, and the connection goes to one of those
very addresses; so a name that changes its answer gains nothing. Each redirect is a new address and
passes the same gate.
"""

from __future__ import annotations


class Fetcher:
    """Fetches pictures from public addresses."""
